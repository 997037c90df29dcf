"""lora_linear: ``x @ w.T + b + scale * (x @ lora_a.T) @ lora_b.T``.

The inner product ``[M, R]`` is linear's, kept in fp32; the outer one, small, is one of fp32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.triton_kernels import launching
from accel.triton_kernels.linear import linear
from accel.triton_kernels.product import (
    CHUNK,
    ROWS,
    accumulate,
    add_columns,
    load_columns,
    load_rows,
    no_sums,
    step,
    store_rows,
)
from accel.triton_kernels.tuning import Tuning

# A chunk of the rank, small as ranks are.
RANK = 16


@triton.jit(do_not_specialize=["m"])
def lora_linear_kernel(
    x, w, inner, lora_b, b, y, m, n, k_size, rank, x_row, x_k, w_row, w_k, up_row, up_r, b_step,
    scale, BLOCKS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """x [m, k_size], w [n, k_size], inner [m, rank] in fp32, contiguous, lora_b [n, rank], b [n] or
    None, y [m, n] contiguous."""
    row = tl.program_id(0).to(tl.int64) * (ROWS * BLOCKS)
    cols = tl.program_id(1) * N + tl.arange(0, N)
    sums = accumulate(
        no_sums(BLOCKS, N), x, row, m, w, cols, n, k_size, x_row, x_k, w_row, w_k, BLOCKS, K
    )
    for i in tl.static_range(BLOCKS):
        rows = row + i * ROWS + tl.arange(0, ROWS)
        low = tl.zeros((ROWS, N), tl.float32)
        for r in range(0, rank, R):
            rs = r + tl.arange(0, R)
            up = load_columns(lora_b, cols, n, rs, rank, up_row, up_r).to(tl.float32)
            low = step(load_rows(inner, rows, m, rs, rank, rank, 1), up, low)
        z = add_columns(sums[i], b, cols, n, b_step) + scale * low
        store_rows(y, z, rows, m, cols, n, n, 1)


def lora_linear(
    tuning: Tuning, x: Tensor, w: Tensor, lora_a: Tensor, lora_b: Tensor, b: Tensor | None,
    scale: float, out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """``[..., N]`` of x ``[..., K]``, w ``[N, K]``, lora_a ``[R, K]`` and lora_b ``[N, R]``."""
    launching.require_one_device(x, w, lora_a, lora_b, b)
    rows, (n, k) = launching.as_rows(x), w.shape
    m = rows.shape[0]
    y = x.new_empty((*x.shape[:-1], n), dtype=out_dtype or x.dtype)
    if y.numel():
        inner = linear(tuning, rows, lora_a, None, None, torch.float32)
        tile = tuning.product(x.dtype, m)
        launching.launch(
            lora_linear_kernel,
            launching.grid(tile, m, n),
            tile,
            rows, w, inner, lora_b, b, y, m, n, k, lora_a.shape[0], *rows.stride(), *w.stride(),
            *lora_b.stride(), launching.step_of(b), float(scale),
            BLOCKS=tile.blocks, N=tile.columns, K=CHUNK[x.dtype], R=RANK,
        )  # fmt: skip
    return y
