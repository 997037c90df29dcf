"""Products inside kernels: sums over K of x and w, in one order whatever the rest is.

A product is made of blocks of 16 rows. Of so few rows the compiler makes one instruction, whatever
the tile's columns, warps and stages: mma.sync.m16n8k16, or v_mfma 16x16; in fp32, without a matrix
unit, a chain of fused multiply-adds in the order of k. From 64 rows it would make wgmma on Hopper,
whose sums are others. So a block's height is fixed, for one row as for thousands, and many rows are
several blocks that share a tile of the weight. A block's sums start from what is given and go
through chunks of K in order: neither the rows beside a row nor the cut of the work changes a bit,
and a sum may go on where another ended at a multiple of the chunk.

ROWS: of a block · BLOCKS: blocks of a program · N: columns of a tile · K: length of a chunk
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# A block's rows, and the chunk of K by dtype: part of a sum's definition, so no tuning.
ROWS = tl.constexpr(16)
CHUNK = {torch.float32: 32, torch.bfloat16: 64, torch.float16: 64}


@triton.jit
def no_sums(BLOCKS: tl.constexpr, N: tl.constexpr):
    """Where sums start from: a tuple of ``BLOCKS`` zeros [ROWS, N] in fp32."""
    sums = ()
    for _ in tl.static_range(BLOCKS):
        sums = sums + (tl.zeros((ROWS, N), tl.float32),)
    return sums


@triton.jit
def step(x, w, total):
    """``total + x @ w`` of one chunk: x [ROWS, K] and w [K, N] of one dtype, total in fp32."""
    return tl.dot(x, w, total, input_precision="ieee")


@triton.jit
def load_columns(w, cols, n, ks, k_size, w_row, w_k):
    """A tile [K, N] of a weight [n, k_size]: rows ``cols`` of it, at ``ks``; 0 outside."""
    places = cols.to(tl.int64)[None, :] * w_row + ks.to(tl.int64)[:, None] * w_k
    return tl.load(w + places, mask=(cols < n)[None, :] & (ks < k_size)[:, None], other=0.0)


@triton.jit
def load_rows(x, rows, m, ks, k_size, x_row, x_k):
    """A block [ROWS, K] of x [m, k_size]; 0 outside."""
    places = rows.to(tl.int64)[:, None] * x_row + ks.to(tl.int64)[None, :] * x_k
    return tl.load(x + places, mask=(rows < m)[:, None] & (ks < k_size)[None, :], other=0.0)


@triton.jit
def accumulate(
    sums, x, row, m, w, cols, n, k_size, x_row, x_k, w_row, w_k,
    BLOCKS: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """``sums`` plus the products of rows ``row`` to ``row + ROWS * BLOCKS`` of x [m, k_size] with
    the rows ``cols`` of w [n, k_size]: a tuple of ``BLOCKS`` of [ROWS, len(cols)], in fp32.

    ``x_row``, ``x_k``, ``w_row`` and ``w_k`` are strides in elements. Rows from ``m`` on and
    columns from ``n`` on count as 0.
    """
    for k in range(0, k_size, K):
        ks = k + tl.arange(0, K)
        tile = load_columns(w, cols, n, ks, k_size, w_row, w_k)
        after = ()
        for i in tl.static_range(BLOCKS):
            rows = row + i * ROWS + tl.arange(0, ROWS)
            block = load_rows(x, rows, m, ks, k_size, x_row, x_k)
            after = after + (step(block, tile, sums[i]),)
        sums = after
    return sums


@triton.jit
def add_columns(z, b, cols, n, b_step):
    """``z`` [ROWS, N] plus a bias [n] in fp32; z itself where there is none."""
    if b is not None:
        z += tl.load(b + cols.to(tl.int64) * b_step, mask=cols < n, other=0.0).to(tl.float32)
    return z


@triton.jit
def store_rows(y, z, rows, m, cols, n, y_row, y_step):
    """Write ``z`` [ROWS, N] into y [m, n], with these strides, rounded to its dtype."""
    places = rows.to(tl.int64)[:, None] * y_row + cols.to(tl.int64)[None, :] * y_step
    mask = (rows < m)[:, None] & (cols < n)[None, :]
    tl.store(y + places, z.to(y.dtype.element_ty), mask=mask)
