"""embedding: a program copies a block of one row of the weight."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from accel.triton_kernels import launching
from accel.triton_kernels.rows import block_of, launch
from accel.triton_kernels.tuning import Tuning

BLOCK = 1024


@triton.jit
def _embedding(ids, w, y, count, columns, w_row, w_column, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    id = tl.load(ids + row).to(tl.int64)
    known = (id >= 0) & (id < count)
    held = column < tl.where(known, columns, 0)
    value = tl.load(w + id * w_row + column.to(tl.int64) * w_column, mask=held)
    # An id out of range is NaN, where a host would have raised: nothing is read outside.
    value = tl.where(held, value, float("nan")).to(y.dtype.element_ty)
    tl.store(y + row * columns + column, value, mask=inside)


def embedding(tuning: Tuning, ids: Tensor, w: Tensor) -> Tensor:
    launching.require_one_device(w, ids)
    y = w.new_empty((*ids.shape, w.shape[1]))
    if y.numel():
        block = block_of(w.shape[1], BLOCK)
        launch(
            _embedding, (ids.numel(), triton.cdiv(w.shape[1], block)), 4,
            ids.reshape(-1).contiguous(), w, y, *w.shape, *w.stride(), BLOCK=block,
        )  # fmt: skip
    return y
