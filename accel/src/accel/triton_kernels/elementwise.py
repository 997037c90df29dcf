"""bias_act and dropout_add, and their gradients: a program has a block of a row's columns.

What is computed of an element has no order to keep. What a bias takes is summed over rows in parts
that their number alone fixes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.triton_kernels import launching
from accel.triton_kernels.activation import activate
from accel.triton_kernels.curves import slope
from accel.triton_kernels.random import kept
from accel.triton_kernels.rows import (
    Gradients,
    block_of,
    launch,
    optional,
    parts_of,
    rows_of,
)
from accel.triton_kernels.tuning import Tuning

BLOCK = 1024


@triton.jit
def _bias_act(x, b, y, columns, ACT: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * columns
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    z = tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)
    if b is not None:
        z += tl.load(b + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + start + column, activate(z, ACT).to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "each"])
def _bias_act_gradient(
    grad, x, b, dx, db, rows, columns, each, ACT: tl.constexpr, BLOCK: tl.constexpr
):
    part = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    bias = tl.zeros((BLOCK,), tl.float32)
    if b is not None:
        bias = tl.load(b + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    first = part * each
    for row in range(first, tl.minimum(first + each, rows)):
        at = tl.cast(row, tl.int64) * columns + column
        dz = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + bias
        dz *= slope(z, ACT)
        total += dz
        if dx is not None:
            tl.store(dx + at, dz.to(dx.dtype.element_ty), mask=inside)
    if db is not None:
        tl.store(db + part * columns + column, total, mask=inside)


@triton.jit
def _left(z, seed, number, column, least, survivor):
    """``z`` with its survivors scaled, what is dropped 0."""
    return tl.where(kept(tl.load(seed), number, column, least), z * survivor, 0.0)


@triton.jit
def _dropout_add(x, residual, b, seed, numbers, y, columns, least, survivor, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    at = row * columns + column
    z = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if b is not None:
        z += tl.load(b + column, mask=inside, other=0.0).to(tl.float32)
    if seed is not None:
        number = row
        if numbers is not None:
            number = tl.load(numbers + row)
        z = _left(z, seed, number, column, least, survivor)
    if residual is not None:
        z = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32) + z
    tl.store(y + at, z.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "each"])
def _dropout_gradient(
    grad, seed, numbers, dx, db, rows, columns, each, least, survivor, BLOCK: tl.constexpr
):
    part = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    total = tl.zeros((BLOCK,), tl.float32)
    first = part * each
    for row in range(first, tl.minimum(first + each, rows)):
        at = tl.cast(row, tl.int64) * columns + column
        dz = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        if seed is not None:
            number = tl.cast(row, tl.int64)
            if numbers is not None:
                number = tl.load(numbers + row)
            dz = _left(dz, seed, number, column, least, survivor)
        total += dz
        if dx is not None:
            tl.store(dx + at, dz.to(dx.dtype.element_ty), mask=inside)
    if db is not None:
        tl.store(db + part * columns + column, total, mask=inside)


def bias_act(tuning: Tuning, x: Tensor, b: Tensor | None, act: str | None) -> Tensor:
    launching.require_one_device(x, b)
    y = x.new_empty(x.shape)
    if x.numel():
        columns = x.shape[-1]
        block = block_of(columns, BLOCK)
        launch(
            _bias_act, (x.numel() // columns, triton.cdiv(columns, block)), 4,
            rows_of(x), optional(b), y, columns, ACT=act, BLOCK=block,
        )  # fmt: skip
    return y


def bias_act_gradient(
    tuning: Tuning,
    grad: Tensor,
    needs: Sequence[bool],
    x: Tensor,
    b: Tensor | None,
    act: str | None,
) -> Gradients:
    if act is None or not x.numel():
        return NotImplemented  # a cast and a sum
    columns = x.shape[-1]
    rows = x.numel() // columns
    block, (parts, each) = block_of(columns, BLOCK), parts_of(rows)
    dx = x.new_empty(x.shape) if needs[0] else None
    db = x.new_empty(parts, columns, dtype=torch.float32) if needs[1] else None
    launch(
        _bias_act_gradient, (parts, triton.cdiv(columns, block)), 4,
        rows_of(grad), rows_of(x), optional(b), dx, db, rows, columns, each, ACT=act, BLOCK=block,
    )  # fmt: skip
    return dx, None if db is None else db.sum(0).to(x.dtype), None


def dropout_add(
    tuning: Tuning, x: Tensor, residual: Tensor | None, b: Tensor | None, seed: Tensor | None,
    rows: Tensor | None, p: float,
) -> Tensor:  # fmt: skip
    launching.require_one_device(x, residual, b, seed, rows)
    y = x.new_empty(x.shape)
    if x.numel():
        columns = x.shape[-1]
        block = block_of(columns, BLOCK)
        seed, numbers, least, survivor = _drawn(seed, rows, p)
        launch(
            _dropout_add, (x.numel() // columns, triton.cdiv(columns, block)), 4,
            rows_of(x), None if residual is None else rows_of(residual), optional(b), seed, numbers,
            y, columns, least, survivor, BLOCK=block,
        )  # fmt: skip
    return y


def dropout_add_gradient(
    tuning: Tuning, grad: Tensor, needs: Sequence[bool], x: Tensor, residual: Tensor | None,
    b: Tensor | None, seed: Tensor | None, rows: Tensor | None, p: float,
) -> Gradients:  # fmt: skip
    """What was dropped is worked out again from the seed."""
    if p == 0 or not x.numel():
        return NotImplemented  # what comes back, and its sum
    dx = db = None
    if needs[0] or needs[2]:
        columns = x.shape[-1]
        count = x.numel() // columns
        block, (parts, each) = block_of(columns, BLOCK), parts_of(count)
        dx = x.new_empty(x.shape) if needs[0] else None
        db = x.new_empty(parts, columns, dtype=torch.float32) if needs[2] else None
        seed, numbers, least, survivor = _drawn(seed, rows, p)
        launch(
            _dropout_gradient, (parts, triton.cdiv(columns, block)), 4,
            rows_of(grad), seed, numbers, dx, db, count, columns, each, least, survivor,
            BLOCK=block,
        )  # fmt: skip
    db = None if db is None else db.sum(0).to(x.dtype)
    return dx, grad if needs[1] else None, db, None, None, None


def _drawn(
    seed: Tensor | None, rows: Tensor | None, p: float
) -> tuple[Tensor | None, Tensor | None, int, float]:
    """(seed, row numbers, which bits are left, what survivors are times); no seed for p of 0."""
    if p == 0:
        return None, None, 0, 1.0
    numbers = None if rows is None else rows.reshape(-1).contiguous()
    return seed, numbers, least_of(p), survivor_of(p)


def least_of(p: float) -> int:
    """An element is left iff its 32 bits are at least this, as :mod:`accel.contracts.random`."""
    return round(p * 2**32)


def survivor_of(p: float) -> float:
    return 1 / (1 - p) if p < 1 else 0.0
