"""quantized_linear: ``act(x @ dequantize(w, scales).T + b)``, the weight read as the bytes it is.

Whole numbers of 8 and 4 bits are exact in x's dtype, so a chunk whose columns share a scale is a
product like linear's, times the scale. Where groups are no multiple of 16 columns, the weight is
scaled in fp32 and the product is one of fp32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.contracts.checks import describe
from accel.contracts.quantized_linear import LAYOUTS
from accel.errors import OpArgumentError
from accel.triton_kernels import launching
from accel.triton_kernels.activation import activate
from accel.triton_kernels.product import (
    CHUNK,
    ROWS,
    add_columns,
    load_columns,
    load_rows,
    no_sums,
    step,
    store_rows,
)
from accel.triton_kernels.tuning import Tuning


@triton.jit
def load_numbers(
    w, cols, n, k, k_size, w_row, w_k, BITS: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    """Whole numbers [K, N] in fp32: columns ``k`` to ``k + K`` of rows ``cols`` of a weight. Beyond
    it they are any: x is 0 there, or the result is not written."""
    if BITS == 8:
        ks = k + tl.arange(0, K)
        numbers = load_columns(w, cols, n, ks, k_size, w_row, w_k).to(tl.float32)
    else:
        half: tl.constexpr = K // 2
        bytes_at = k // 2 + tl.arange(0, half)
        # [N, K/2], so that what lies side by side stays so.
        places = cols.to(tl.int64)[:, None] * w_row + bytes_at.to(tl.int64)[None, :] * w_k
        mask = (cols < n)[:, None] & (bytes_at < k_size // 2)[None, :]
        pair = tl.load(w + places, mask=mask, other=0).to(tl.int32)
        both = tl.join((pair & 15) - 8, (pair >> 4) - 8)
        numbers = tl.trans(tl.reshape(both, (N, K))).to(tl.float32)
    return numbers


@triton.jit(do_not_specialize=["m"])
def quantized_linear_kernel(
    x, w, scales, b, y, m, n, k_size, group, x_row, x_k, w_row, w_k, s_row, s_group, b_step,
    BITS: tl.constexpr, SHARED: tl.constexpr, ACT: tl.constexpr, BLOCKS: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """x [m, k_size], w [n, k_size] of int8 or [n, k_size / 2] of uint8, scales [n, groups] in fp32,
    each of ``group`` columns, b [n] or None, y [m, n] contiguous. ``SHARED``: no chunk has columns
    of two groups."""
    row = tl.program_id(0).to(tl.int64) * (ROWS * BLOCKS)
    cols = tl.program_id(1) * N + tl.arange(0, N)
    of_cols = scales + cols.to(tl.int64) * s_row
    sums = no_sums(BLOCKS, N)
    for k in range(0, k_size, K):
        ks = k + tl.arange(0, K)
        numbers = load_numbers(w, cols, n, k, k_size, w_row, w_k, BITS, N, K)
        if SHARED:
            scale = tl.load(of_cols + (k // group) * s_group, mask=cols < n, other=0.0)[None, :]
        else:
            places = of_cols[None, :] + (ks // group)[:, None] * s_group
            mask = (ks < k_size)[:, None] & (cols < n)[None, :]
            numbers *= tl.load(places, mask=mask, other=0.0)
        after = ()
        for i in tl.static_range(BLOCKS):
            rows = row + i * ROWS + tl.arange(0, ROWS)
            block = load_rows(x, rows, m, ks, k_size, x_row, x_k)
            if SHARED:
                part = step(block, numbers.to(block.dtype), tl.zeros((ROWS, N), tl.float32))
                after = after + (sums[i] + part * scale,)
            else:
                after = after + (step(block.to(tl.float32), numbers, sums[i]),)
        sums = after
    for i in tl.static_range(BLOCKS):
        rows = row + i * ROWS + tl.arange(0, ROWS)
        z = activate(add_columns(sums[i], b, cols, n, b_step), ACT)
        store_rows(y, z, rows, m, cols, n, n, 1)


def quantized_linear(
    tuning: Tuning, x: Tensor, w: Tensor, scales: Tensor, b: Tensor | None, bits: int,
    act: str | None, out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """``[..., N]`` of x ``[..., K]``, w and its scales ``[N, G]``, in ``out_dtype`` or x's."""
    launching.require_one_device(x, w, scales, b)
    dtype, _, _ = LAYOUTS[bits]
    if w.dtype is not dtype:  # what is bound for one may be called with the other's
        raise OpArgumentError(f"quantized_linear: w of {bits} bits is {dtype}; found {describe(w)}")
    rows, n, k = launching.as_rows(x), w.shape[0], x.shape[-1]
    m = rows.shape[0]
    y = x.new_empty((*x.shape[:-1], n), dtype=out_dtype or x.dtype)
    if y.numel():
        group = max(k // scales.shape[1], 1)
        chunk = CHUNK[x.dtype]
        shared = scales.shape[1] == 1
        if not shared:
            fitting = [c for c in (chunk, chunk // 2, chunk // 4) if c >= 16 and group % c == 0]
            shared = bool(fitting)
            chunk = fitting[0] if shared else CHUNK[torch.float32]
        # The weight widened.
        tile = tuning.product(x.dtype if shared else torch.float32, m).halved()
        launching.launch(
            quantized_linear_kernel,
            launching.grid(tile, m, n),
            tile,
            rows, w, scales, b, y, m, n, k, group, *rows.stride(), *w.stride(), *scales.stride(),
            launching.step_of(b),
            BITS=bits, SHARED=shared, ACT=act, BLOCKS=tile.blocks, N=tile.columns, K=chunk,
        )  # fmt: skip
    return y
