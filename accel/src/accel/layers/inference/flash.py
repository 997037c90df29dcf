"""The layout that flash attention reads: head by head, each filled up with zeros."""

from __future__ import annotations

from torch import Tensor

from accel.contracts import checks
from accel.errors import OpArgumentError
from accel.layers.inference.base import BaseOp

# What PadTransformOp fills the rows of keys and values up to.
_ROWS = 128


def padded_head_size(size: int) -> int:
    """The size of a head in the layout: a multiple of 64 as it is, others the next of 32, 64 and
    128 above, as in DeepSpeed. OpArgumentError where there is none."""
    if size % 64 == 0:
        return size
    for padded in (32, 64, 128):
        if size < padded:
            return padded
    raise OpArgumentError(
        f"flash attention takes heads of less than 128 elements or of a multiple of 64; found "
        f"{size}"
    )


def flash_layout(qkv: Tensor, num_heads: int) -> Tensor:
    """``[B, S, 3 * num_heads * size]`` as ``[3, B, num_heads, S, padded size]``."""
    width = qkv.shape[-1]
    if width % (3 * num_heads):
        raise OpArgumentError(
            f"for flash attention out must be 3 * num_heads * size; found {width} with "
            f"num_heads={num_heads}"
        )
    return _filled(qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4))


class PadTransformOp(BaseOp):
    """Queries, keys and values head by head, filled up with zeros for flash attention."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, heads: int, add_padding: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each ``[B, S, heads * size]`` as ``[B, heads, S, padded]``, where padded is
        :func:`padded_head_size`; with ``add_padding`` keys and values have 128 rows."""
        for name, t in (("query", query), ("key", key), ("value", value)):
            if t.dim() != 3 or heads < 1 or t.shape[2] % heads:
                raise OpArgumentError(
                    f"PadTransformOp: {name} must be [B, S, heads * size] with heads={heads}; "
                    f"found {checks.describe(t)}"
                )
            if add_padding and name != "query" and t.shape[1] > _ROWS:
                raise OpArgumentError(
                    f"PadTransformOp: add_padding fills {name} up to {_ROWS} rows; found "
                    f"{checks.describe(t)}"
                )
        rows = _ROWS if add_padding else 0
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value))
        return _filled(q), _filled(k, rows), _filled(v, rows)


def _filled(t: Tensor, rows: int = 0) -> Tensor:
    """``[..., S, size]`` in the corner of zeros ``[..., max(S, rows), padded size]``."""
    length, size = t.shape[-2:]
    filled = t.new_zeros((*t.shape[:-2], max(length, rows), padded_head_size(size)))
    filled[..., :length, :size] = t
    return filled
