"""The layers of an encoder, called one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from accel.engine.call import Call
from accel.engine.forward import Forward
from accel.engine.sequences import Sequences
from accel.engine.spec import EncoderSpec
from accel.errors import OpArgumentError, UnsupportedCapability

# What transformers hands on to layers and has dealt with before, or deals with around them.
_DEALT_WITH = ("position_ids", "output_hidden_states")


class Encoder(Forward):
    """From embeddings ``[B, S, H]`` to the last layer's hidden states, of the real tokens: rows of
    padding see nothing.

    ``attention_mask`` is as transformers makes it from one of ones and zeros: those ``[B, S]``, or
    ``[B, 1, S, S]`` of booleans (True: seen) or of numbers to be added (0: seen).
    """

    def __init__(self, module: nn.Module, spec: EncoderSpec, exact: bool) -> None:
        super().__init__(module)
        self.spec = spec
        self.exact = exact

    def __call__(
        self,
        hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        is_causal: bool | None = None,
        **unserved: Any,
    ) -> Any:
        """transformers' output, with ``last_hidden_state`` alone; layers' are recorded by its own
        hooks. UnsupportedCapability for arguments that ask for more."""
        self._refuse({**unserved, "is_causal": is_causal not in (None, self.spec.causal)})
        h = hidden_states if inputs_embeds is None else inputs_embeds
        assert h is not None
        real = None if attention_mask is None else self._real(attention_mask, h)
        call = Call(exact=self.exact)
        with call.active(h.device):
            sequences = Sequences.of(real, h.shape[:2], h.device)
            layers: Any = self.module.get_submodule(self.spec.layers.rpartition(".")[2])
            for layer in layers.children():
                h = layer(h, None, sequences, call)
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=h)

    def _refuse(self, unserved: dict[str, Any]) -> None:
        asked = [
            name for name, value in unserved.items()
            if value is not None and value is not False and name not in _DEALT_WITH
        ]  # fmt: skip
        if asked:
            raise UnsupportedCapability(
                f"{type(self.module).__name__} does not take {', '.join(asked)} while its layers "
                "are the engine's, which see themselves alone and keep no probabilities and no "
                "cache; accel.restore(model) brings the model's own back"
            )

    def _real(self, mask: Tensor, h: Tensor) -> Tensor:
        """``[B, S]``: which tokens are real. OpArgumentError unless that is all that the mask says,
        beside causality where the model is causal."""
        if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
            found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise OpArgumentError(
                f"an encoder's mask must be [B, S] or [B, 1, S, S]; found {found}"
            )
        if mask.dim() == 2:
            return mask
        seen = mask if mask.dtype is torch.bool else mask == 0
        batch, length = h.shape[:2]
        seen = seen[:, 0].expand(batch, length, length)
        real = seen[:, -1]
        wanted = real[:, None]
        if self.spec.causal:
            wanted = wanted & torch.ones_like(seen[0]).tril()
        same = (seen == wanted) | ~real[:, :, None]  # what padding sees is seen by nobody
        hides = mask.dtype is torch.bool or (
            (mask == 0) | (mask <= torch.finfo(mask.dtype).min)
        ).all()  # fmt: skip
        if mask.shape[1] != 1 or not (same.all() and hides):
            order = "and what comes later" if self.spec.causal else "and nothing else"
            raise OpArgumentError(
                f"the engine's encoder takes masks that hide padding {order}: attention_mask "
                "[B, S] of ones and zeros; one for each query is not served. "
                "accel.restore(model) brings the model's own layers back"
            )
        return real
