"""TransformerFunction: the layer as one op, called as DeepSpeed's autograd Function is."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from accel import ops
from accel.layers.transformer.config import TransformerLayerConfig
from accel.layers.transformer.layer import TransformerLayer
from accel.layers.transformer.weights import watched


class TransformerFunction:
    """:func:`accel.ops.transformer_layer` under DeepSpeed's name and in its order of arguments.

    Nothing of the forward is kept but its arguments; the backward computes the layer again. So the
    memory flags of the config have nothing to save here: :class:`TransformerLayer` calls the pieces
    one by one instead, and heeds them. No :class:`torch.autograd.Function` of its own: the op is.
    """

    @staticmethod
    def apply(
        input: Tensor,
        input_mask: Tensor | None,
        self: TransformerLayer,
        grads: list[Any] | None,
        layer_id: int,
        attn_qkvw: Tensor,
        attn_qkvb: Tensor,
        attn_ow: Tensor,
        attn_ob: Tensor,
        attn_nw: Tensor,
        attn_nb: Tensor,
        inter_w: Tensor,
        inter_b: Tensor,
        output_w: Tensor,
        output_b: Tensor,
        norm_w: Tensor,
        norm_b: Tensor,
        config: TransformerLayerConfig,
    ) -> Tensor | tuple[Tensor]:
        """``self`` has the mode and draws the dropout; ``layer_id`` is without effect. The rest is
        as in :meth:`TransformerLayer.forward`."""
        mask = self.prepared(input, input_mask)
        weights = [
            attn_qkvw, attn_qkvb, attn_ow, attn_ob, attn_nw, attn_nb,
            inter_w, inter_b, output_w, output_b, norm_w, norm_b,
        ]  # fmt: skip
        if grads is not None:
            weights = watched(weights, grads)
        options = config.op_options(self.training)
        seeds = self.seeds(options, input.device)
        with self.resolution():
            # mypy does not know how many weights there are.
            y = ops.transformer_layer(input, *weights, mask=mask, seed=seeds, **options)  # type: ignore[misc]
        return (y,) if config.return_tuple else y
