"""grouped_linear: rows sorted by expert, each times its own expert's weight, with linear's bits.

The ends stay on the device: a program finds its expert and rows by itself, so a step can be
recorded as a graph. Every expert's rows begin a block of their own; there are as many programs as
there can be blocks, and those left over do nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.contracts.grouped_linear import ranges
from accel.host import in_host_memory
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


@triton.jit
def own_rows(ends, experts, m, number, HEIGHT: tl.constexpr, E: tl.constexpr):
    """(expert, first row, end of its rows) of block ``number``, blocks being of ``HEIGHT`` rows;
    of a number beyond the last the rows are none."""
    e = tl.arange(0, E)
    end = tl.load(ends + e, mask=e < experts, other=0)
    start = tl.load(ends + e - 1, mask=(e > 0) & (e < experts), other=0)
    # No ends, however wrong, lead outside.
    start = tl.minimum(tl.maximum(start, 0), m)
    end = tl.minimum(tl.maximum(end, start), m)
    count = (end - start + HEIGHT - 1) // HEIGHT
    after = tl.cumsum(count, 0)
    before = after - count
    mine = (before <= number) & (number < after)
    expert = tl.sum(tl.where(mine, e, 0), 0)
    row = tl.sum(tl.where(mine, start + (number - before) * HEIGHT, 0), 0)
    return expert, row, tl.sum(tl.where(mine, end, 0), 0)


@triton.jit(do_not_specialize=["m"])
def grouped_linear_kernel(
    x, w, ends, b, y, m, n, k_size, experts, x_row, x_k, w_expert, w_row, w_k, b_expert, b_step,
    ACT: tl.constexpr, BLOCKS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """x [m, k_size], w [experts, n, k_size], ends [experts] in int64, contiguous, b [experts, n] or
    None, y [m, n] contiguous."""
    expert, row, stop = own_rows(ends, experts, m, tl.program_id(0), ROWS * BLOCKS, E)
    if row < stop:
        cols = tl.program_id(1) * N + tl.arange(0, N)
        own = w + expert.to(tl.int64) * w_expert
        sums = accumulate(
            no_sums(BLOCKS, N), x, row, stop, own, cols, n, k_size, x_row, x_k, w_row, w_k,
            BLOCKS, K,
        )  # fmt: skip
        for i in tl.static_range(BLOCKS):
            rows = row + i * ROWS + tl.arange(0, ROWS)
            z = sums[i]
            if b is not None:
                z = add_columns(z, b + expert.to(tl.int64) * b_expert, cols, n, b_step)
            store_rows(y, activate(z, ACT), rows, stop, cols, n, n, 1)


def grouped_linear(
    tuning: Tuning, x: Tensor, w: Tensor, ends: Tensor, b: Tensor | None, act: str | None,
    out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """``[M, N]`` of x ``[M, K]``, w ``[E, N, K]`` and ends ``[E]``. IndexError for ends out of
    order where they can be read without waiting; on a device they count as far as they go."""
    launching.require_one_device(x, w, ends, b)
    if in_host_memory(ends):
        ranges(ends, x.shape[0])
    (m, k), (experts, n, _) = x.shape, w.shape
    y = x.new_zeros((m, n), dtype=out_dtype or x.dtype)
    if y.numel() and experts:
        tile = tuning.product(x.dtype, -(-m // experts))
        height = 16 * tile.blocks
        # A block is full, or an expert's last.
        programs = m // height + min(experts, m)
        launching.launch(
            grouped_linear_kernel,
            (programs, -(-n // tile.columns)),
            tile,
            x, w, ends.contiguous(), b, y, m, n, k, experts, *x.stride(), *w.stride(),
            *((0, 0) if b is None else b.stride()),
            ACT=act, BLOCKS=tile.blocks, N=tile.columns, K=CHUNK[x.dtype],
            E=triton.next_power_of_2(experts),
        )  # fmt: skip
    return y
