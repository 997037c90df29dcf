"""A linear layer in tiles that return their bias instead of adding it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from accel.errors import OpArgumentError
from accel.layers.tiled_linear import TiledLinear


class TiledLinearReturnBias(TiledLinear):
    """:class:`TiledLinear` of tiles that return (result, bias or None), as Megatron-LM's do.

    Returns (result, bias), the bias not added, or a list of such pairs; None if no tile returns
    one.
    """

    def _reduce_local_output(
        self, in_id: int, out_id: int, current_out: Any, new_out: Any
    ) -> tuple[Tensor, Tensor | None]:
        if not isinstance(new_out, tuple) or len(new_out) != 2 or new_out[0] is None:
            raise OpArgumentError(
                f"{type(self).__name__}: a tile must return (tensor, bias or None); tile "
                f"[{out_id}][{in_id}] returned {type(new_out).__name__}"
            )
        tensor, bias = new_out
        if current_out is None:
            return tensor, bias
        total = super()._reduce_local_output(in_id, out_id, current_out[0], tensor)
        return total, current_out[1] if bias is None else bias

    def _combine_output_splits(self, outputs: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        tensors, biases = zip(*outputs)
        given = [bias for bias in biases if bias is not None]
        if given and len(given) < len(biases):
            raise OpArgumentError(
                f"{type(self).__name__}: all rows of tiles must return a bias, or none; found "
                f"{len(given)} of {len(biases)}"
            )
        combine = super()._combine_output_splits
        return combine(tensors), combine(given) if given else None
