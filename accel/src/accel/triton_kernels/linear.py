"""linear: ``act(x @ w.T + b)``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.triton_kernels import launching
from accel.triton_kernels.activation import activate
from accel.triton_kernels.product import (
    CHUNK,
    ROWS,
    accumulate,
    add_columns,
    no_sums,
    store_rows,
)
from accel.triton_kernels.tuning import Tuning


@triton.jit(do_not_specialize=["m"])
def linear_kernel(
    x, w, b, y, m, n, k_size, x_row, x_k, w_row, w_k, b_step,
    ACT: tl.constexpr, BLOCKS: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """x [m, k_size], w [n, k_size], b [n] or None, y [m, n] contiguous."""
    row = tl.program_id(0).to(tl.int64) * (ROWS * BLOCKS)
    cols = tl.program_id(1) * N + tl.arange(0, N)
    sums = accumulate(
        no_sums(BLOCKS, N), x, row, m, w, cols, n, k_size, x_row, x_k, w_row, w_k, BLOCKS, K
    )
    for i in tl.static_range(BLOCKS):
        rows = row + i * ROWS + tl.arange(0, ROWS)
        z = activate(add_columns(sums[i], b, cols, n, b_step), ACT)
        store_rows(y, z, rows, m, cols, n, n, 1)


def linear(
    tuning: Tuning, x: Tensor, w: Tensor, b: Tensor | None, act: str | None,
    out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """``[..., N]`` of x ``[..., K]`` and w ``[N, K]``, in ``out_dtype`` or x's."""
    launching.require_one_device(x, w, b)
    rows, (n, k) = launching.as_rows(x), w.shape
    m = rows.shape[0]
    y = x.new_empty((*x.shape[:-1], n), dtype=out_dtype or x.dtype)
    if y.numel():
        tile = tuning.product(x.dtype, m)
        launching.launch(
            linear_kernel,
            launching.grid(tile, m, n),
            tile,
            rows, w, b, y, m, n, k, *rows.stride(), *w.stride(), launching.step_of(b),
            ACT=act, BLOCKS=tile.blocks, N=tile.columns, K=CHUNK[x.dtype],
        )  # fmt: skip
    return y
