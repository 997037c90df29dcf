"""softmax of rows and its gradient: a program has a row, and goes through it in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.triton_kernels import launching
from accel.triton_kernels.rows import Gradients, aligned, block_of, launch, rows_of, warps_of
from accel.triton_kernels.tuning import Tuning


@triton.jit
def _scores(x, mask, at, mask_row, column, columns, scale, MASK_COLUMNS: tl.constexpr):
    """``x * scale + mask``; -inf behind the last column."""
    inside = column < columns
    z = tl.load(x + at + column, mask=inside, other=0.0).to(tl.float32) * scale
    if mask is not None:
        if MASK_COLUMNS:
            z += tl.load(mask + mask_row + column, mask=inside, other=0.0).to(tl.float32)
        else:
            z += tl.load(mask + mask_row).to(tl.float32)
    return tl.where(inside, z, float("-inf"))


@triton.jit
def _softmax(
    x, mask, mask_rows, y, columns, mask_columns, scale,
    MASK_COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = row * columns
    mask_row = row
    if mask is not None:
        mask_row = tl.load(mask_rows + row) * mask_columns
    lane = tl.arange(0, BLOCK)
    tops = tl.full((BLOCK,), float("-inf"), tl.float32)
    for first in range(0, columns, BLOCK):
        z = _scores(x, mask, at, mask_row, first + lane, columns, scale, MASK_COLUMNS)
        tops = tl.maximum(tops, z)
    top = tl.max(tops)
    # While every score is -inf any finite number serves; -inf itself would make them NaN.
    top = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        z = _scores(x, mask, at, mask_row, first + lane, columns, scale, MASK_COLUMNS)
        weights += tl.exp(z - top)
    total = tl.sum(weights)
    for first in range(0, columns, BLOCK):
        column = first + lane
        z = _scores(x, mask, at, mask_row, column, columns, scale, MASK_COLUMNS)
        # A row of nothing but -inf sees nothing.
        p = tl.where(total == 0.0, 0.0, tl.div_rn(tl.exp(z - top), total))
        tl.store(y + at + column, p.to(y.dtype.element_ty), mask=column < columns)


@triton.jit
def _softmax_gradient(grad, p, dx, columns, scale, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * columns
    lane = tl.arange(0, BLOCK)
    shares = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        inside = first + lane < columns
        weight = tl.load(p + at + first + lane, mask=inside, other=0.0).to(tl.float32)
        shares += weight * tl.load(grad + at + first + lane, mask=inside, other=0.0).to(tl.float32)
    share = tl.sum(shares)
    for first in range(0, columns, BLOCK):
        inside = first + lane < columns
        weight = tl.load(p + at + first + lane, mask=inside, other=0.0).to(tl.float32)
        dp = tl.load(grad + at + first + lane, mask=inside, other=0.0).to(tl.float32)
        found = weight * (dp - share) * scale
        tl.store(dx + at + first + lane, found.to(dx.dtype.element_ty), mask=inside)


def softmax(tuning: Tuning, x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    launching.require_one_device(x, mask)
    y = x.new_empty(x.shape)
    if x.numel():
        columns, block = x.shape[-1], block_of(x.shape[-1])
        mask_rows, per_column = None, False
        if mask is not None:
            mask_rows, per_column = _rows_of_mask(mask, x), mask.shape[-1] == columns > 1
            mask = aligned(mask)
        launch(
            _softmax, (x.numel() // columns,), warps_of(block),
            rows_of(x), mask, mask_rows, y, columns, 1 if mask is None else mask.shape[-1], scale,
            MASK_COLUMNS=per_column, BLOCK=block,
        )  # fmt: skip
    return y


def _rows_of_mask(mask: Tensor, x: Tensor) -> Tensor:
    """int64 [M]: which row of the mask each row of x has."""
    leading = mask.shape[:-1]
    rows = torch.arange(math.prod(leading), device=x.device).view(leading)
    return rows.expand(x.shape[:-1]).reshape(-1).contiguous()


def forward(
    tuning: Tuning, x: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, tuple[Tensor, ...], Callable[..., Gradients] | None]:
    """With what its gradient is made of, the result; that of a mask is the contract's."""
    p = softmax(tuning, x, mask, scale)
    return p, (p,), None if mask is not None and mask.requires_grad else _gradient


def _gradient(
    grad: Tensor, needs: Sequence[bool], x: Tensor, mask: Tensor | None, scale: float, *,
    kept: Sequence[Tensor],
) -> Gradients:  # fmt: skip
    p = kept[0]
    if not needs[0]:
        return None, None, None
    dx = p.new_empty(p.shape)
    if p.numel():
        columns, block = p.shape[-1], block_of(p.shape[-1])
        launch(
            _softmax_gradient, (p.numel() // columns,), warps_of(block),
            rows_of(grad), rows_of(p), dx, columns, scale, BLOCK=block,
        )  # fmt: skip
    return dx, None, None
