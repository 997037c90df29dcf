"""tiled_linear: ``partial + x @ w.T + b``, a tile of a product whose sum is split.

A sum starts from the partial one, so tiles of whole chunks of K give the bits of linear, in fp32.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.triton_kernels import launching
from accel.triton_kernels.product import CHUNK, ROWS, accumulate, add_columns, store_rows
from accel.triton_kernels.tuning import Tuning


@triton.jit
def load_sums(
    partial, row, m, cols, n, p_row, p_step, BLOCKS: tl.constexpr, N: tl.constexpr
):  # fmt: skip
    """Where sums start from: a tuple of ``BLOCKS`` [ROWS, N] of partial [m, n], or zeros."""
    sums = ()
    for i in tl.static_range(BLOCKS):
        if partial is None:
            sums = sums + (tl.zeros((ROWS, N), tl.float32),)
        else:
            rows = row + i * ROWS + tl.arange(0, ROWS)
            places = rows.to(tl.int64)[:, None] * p_row + cols.to(tl.int64)[None, :] * p_step
            mask = (rows < m)[:, None] & (cols < n)[None, :]
            found = tl.load(partial + places, mask=mask, other=0.0)
            sums = sums + (found.to(tl.float32),)
    return sums


@triton.jit(do_not_specialize=["m"])
def tiled_linear_kernel(
    x, w, b, partial, y, m, n, k_size, x_row, x_k, w_row, w_k, b_step, p_row, p_step, y_row,
    y_step, BLOCKS: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """x [m, k_size], w [n, k_size], b [n] or None, partial [m, n] or None, y [m, n]; partial and y
    may be one."""
    row = tl.program_id(0).to(tl.int64) * (ROWS * BLOCKS)
    cols = tl.program_id(1) * N + tl.arange(0, N)
    sums = load_sums(partial, row, m, cols, n, p_row, p_step, BLOCKS, N)
    sums = accumulate(sums, x, row, m, w, cols, n, k_size, x_row, x_k, w_row, w_k, BLOCKS, K)
    for i in tl.static_range(BLOCKS):
        rows = row + i * ROWS + tl.arange(0, ROWS)
        z = add_columns(sums[i], b, cols, n, b_step)
        store_rows(y, z, rows, m, cols, n, y_row, y_step)


def tiled_linear(
    tuning: Tuning, x: Tensor, w: Tensor, b: Tensor | None, partial: Tensor | None,
    out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """``[..., N]`` of x ``[..., K]``, w ``[N, K]`` and a partial sum ``[..., N]``."""
    y = x.new_empty((*x.shape[:-1], w.shape[0]), dtype=out_dtype or x.dtype)
    return tiled_linear_into(tuning, x, w, b, partial, y)


def tiled_linear_into(
    tuning: Tuning, x: Tensor, w: Tensor, b: Tensor | None, partial: Tensor | None, out: Tensor
) -> Tensor:
    """The same, written to ``out`` ``[..., N]``, whose rows lie at equal distances."""
    launching.require_one_device(x, w, b, partial, out)
    rows, (n, k) = launching.as_rows(x), w.shape
    m = rows.shape[0]
    if out.numel():
        tile = tuning.product(x.dtype, m)
        y = out.view(math.prod(out.shape[:-1]), n)
        so_far = None if partial is None else launching.as_rows(partial)
        launching.launch(
            tiled_linear_kernel,
            launching.grid(tile, m, n),
            tile,
            rows, w, b, so_far, y, m, n, k, *rows.stride(), *w.stride(), launching.step_of(b),
            *((0, 0) if so_far is None else so_far.stride()), *y.stride(),
            BLOCKS=tile.blocks, N=tile.columns, K=CHUNK[x.dtype],
        )  # fmt: skip
    return out
