"""norm_linear: ``act(norm(x) @ w.T + b)``. A row is normalised where it is read, in fp32, and
rounded to x's dtype; what follows is linear of it. Where the result is wider than x the row is not
rounded, and the product is one of fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.contracts.norm_linear import require_kind
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
def added(lanes, K: tl.constexpr):
    """[ROWS, 1]: the sum of ``lanes`` [ROWS, K], of neighbours first, then of their sums.

    The order is written out: that of ``tl.sum`` follows from how the compiler lays a tile out over
    threads, and that from the tile's warps and from what it knows of x's strides and address.
    """
    for i in tl.static_range(16):
        if (2 << i) <= K:
            left, right = tl.split(tl.reshape(lanes, (ROWS, K // (2 << i), 2)))
            lanes = left + right
    return lanes


@triton.jit
def statistics(x, rows, m, k_size, x_row, x_k, eps, CENTRED: tl.constexpr, K: tl.constexpr):
    """(mean, 1 / deviation) of rows of x [m, k_size], each [ROWS, 1] in fp32, the mean 0 unless
    ``CENTRED``. Column k goes to lane k % K of the sum, then lanes are :func:`added`: one order."""
    mean = tl.zeros((ROWS, 1), tl.float32)
    if CENTRED:
        lanes = tl.zeros((ROWS, K), tl.float32)
        for k in range(0, k_size, K):
            ks = k + tl.arange(0, K)
            lanes += load_rows(x, rows, m, ks, k_size, x_row, x_k).to(tl.float32)
        mean = added(lanes, K) / k_size
    squares = tl.zeros((ROWS, K), tl.float32)
    for k in range(0, k_size, K):
        ks = k + tl.arange(0, K)
        off = load_rows(x, rows, m, ks, k_size, x_row, x_k).to(tl.float32) - mean
        off = tl.where((ks < k_size)[None, :], off, 0.0)
        squares += off * off
    return mean, 1 / tl.sqrt(added(squares, K) / k_size + eps)


@triton.jit(do_not_specialize=["m"])
def norm_linear_kernel(
    x, w, norm_w, norm_b, b, y, m, n, k_size, x_row, x_k, w_row, w_k, norm_w_step, norm_b_step,
    b_step, eps,
    CENTRED: tl.constexpr, WIDE: tl.constexpr, ACT: tl.constexpr, BLOCKS: tl.constexpr,
    N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """x [m, k_size], w [n, k_size], norm_w and norm_b [k_size] or None, b [n] or None, y [m, n]
    contiguous."""
    row = tl.program_id(0).to(tl.int64) * (ROWS * BLOCKS)
    cols = tl.program_id(1) * N + tl.arange(0, N)
    means, scales = (), ()
    for i in tl.static_range(BLOCKS):
        rows = row + i * ROWS + tl.arange(0, ROWS)
        mean, scale = statistics(x, rows, m, k_size, x_row, x_k, eps, CENTRED, K)
        means = means + (mean,)
        scales = scales + (scale,)
    sums = no_sums(BLOCKS, N)
    for k in range(0, k_size, K):
        ks = k + tl.arange(0, K)
        inside = ks < k_size
        tile = load_columns(w, cols, n, ks, k_size, w_row, w_k)
        after = ()
        for i in tl.static_range(BLOCKS):
            rows = row + i * ROWS + tl.arange(0, ROWS)
            block = load_rows(x, rows, m, ks, k_size, x_row, x_k)
            normed = (block.to(tl.float32) - means[i]) * scales[i]
            if norm_w is not None:
                weight = tl.load(norm_w + ks.to(tl.int64) * norm_w_step, mask=inside, other=0.0)
                normed *= weight.to(tl.float32)[None, :]
            if norm_b is not None:
                shift = tl.load(norm_b + ks.to(tl.int64) * norm_b_step, mask=inside, other=0.0)
                normed += shift.to(tl.float32)[None, :]
            # Past the row's end the weight is 0, and this must not be infinite.
            normed = tl.where(inside[None, :], normed, 0.0)
            if WIDE:
                after = after + (step(normed, tile.to(tl.float32), sums[i]),)
            else:
                after = after + (step(normed.to(block.dtype), tile, sums[i]),)
        sums = after
    for i in tl.static_range(BLOCKS):
        rows = row + i * ROWS + tl.arange(0, ROWS)
        z = activate(add_columns(sums[i], b, cols, n, b_step), ACT)
        store_rows(y, z, rows, m, cols, n, n, 1)


def norm_linear(
    tuning: Tuning, x: Tensor, w: Tensor, norm_w: Tensor | None, norm_b: Tensor | None,
    b: Tensor | None, kind: str, eps: float, act: str | None, out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """``[..., N]`` of x ``[..., K]`` and w ``[N, K]``, in ``out_dtype`` or x's."""
    require_kind(kind, norm_b)
    launching.require_one_device(x, w, norm_w, norm_b, b)
    rows, (n, k) = launching.as_rows(x), w.shape
    m = rows.shape[0]
    y = x.new_empty((*x.shape[:-1], n), dtype=out_dtype or x.dtype)
    if y.numel():
        wide = y.dtype.itemsize > x.dtype.itemsize
        of = torch.float32 if wide else x.dtype
        tile = tuning.product(of, m).halved()  # a row is held in fp32
        launching.launch(
            norm_linear_kernel,
            launching.grid(tile, m, n),
            tile,
            rows, w, norm_w, norm_b, b, y, m, n, k, *rows.stride(), *w.stride(),
            *map(launching.step_of, (norm_w, norm_b, b)), float(eps),
            CENTRED=kind == "layer", WIDE=wide, ACT=act, BLOCKS=tile.blocks, N=tile.columns,
            K=CHUNK[of],
        )  # fmt: skip
    return y
