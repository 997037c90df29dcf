"""rms_norm, layer_norm and their sums with a residual, and the gradient: a program has a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.triton_kernels import launching
from accel.triton_kernels.rows import (
    Gradients,
    block_of,
    launch,
    optional,
    parts_of,
    power_of_two,
    rows_of,
    warps_of,
)
from accel.triton_kernels.tuning import Tuning

# A gradient holds a row at once, to add it to its share of the weight's.
LONGEST_GRADIENT = 16384


@triton.jit
def _values(x, residual, at, inside):
    """Elements in fp32: of x, or of its sum with the residual, rounded as it will be kept."""
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        other = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        value = (value + other).to(x.dtype.element_ty).to(tl.float32)
    return value


@triton.jit
def _norm(x, residual, w, b, y, total, columns, eps, LAYER: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * columns
    lane = tl.arange(0, BLOCK)
    mean = 0.0
    if LAYER:
        summed = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, columns, BLOCK):
            summed += _values(x, residual, start + first + lane, first + lane < columns)
        mean = tl.div_rn(tl.sum(summed), tl.cast(columns, tl.float32))
    # After the mean: a mean of squares less a squared mean loses all digits where the mean is
    # large.
    squares = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        inside = first + lane < columns
        value = _values(x, residual, start + first + lane, inside) - mean
        squares += tl.where(inside, value * value, 0.0)
    square = tl.div_rn(tl.sum(squares), tl.cast(columns, tl.float32))
    scale = tl.div_rn(1.0, tl.sqrt_rn(square + eps))
    for first in range(0, columns, BLOCK):
        column = first + lane
        inside = column < columns
        value = _values(x, residual, start + column, inside)
        if total is not None:
            tl.store(total + start + column, value.to(total.dtype.element_ty), mask=inside)
        value = (value - mean) * scale
        if w is not None:
            value = value * tl.load(w + column, mask=inside, other=0.0).to(tl.float32)
        if b is not None:
            value = value + tl.load(b + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + start + column, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "each"])
def _norm_gradient(
    grad, x, residual, total_grad, w, dx, dw, db, rows, columns, eps, each,
    LAYER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of ``each`` rows one after another: their dx, and their share of dw and db."""
    part = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    count = tl.cast(columns, tl.float32)
    weight = tl.full((BLOCK,), 1.0, tl.float32)
    if w is not None:
        weight = tl.load(w + column, mask=inside, other=0.0).to(tl.float32)
    of_w = tl.zeros((BLOCK,), tl.float32)
    of_b = tl.zeros((BLOCK,), tl.float32)
    first = part * each
    for row in range(first, tl.minimum(first + each, rows)):
        at = tl.cast(row, tl.int64) * columns + column
        value = _values(x, residual, at, inside)
        if LAYER:
            value = tl.where(inside, value - tl.div_rn(tl.sum(value), count), 0.0)
        scale = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(value * value), count) + eps))
        normed = value * scale
        dy = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        of_w += dy * normed
        of_b += dy
        if dx is not None:
            g = dy * weight
            found = g - normed * tl.div_rn(tl.sum(g * normed), count)
            if LAYER:
                found -= tl.div_rn(tl.sum(g), count)
            found *= scale
            if total_grad is not None:
                # Rounded as the contract's is, before the sum.
                found = found.to(dx.dtype.element_ty).to(tl.float32)
                found += tl.load(total_grad + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(dx + at, found.to(dx.dtype.element_ty), mask=inside)
    if dw is not None:
        tl.store(dw + part * columns + column, of_w, mask=inside)
    if db is not None:
        tl.store(db + part * columns + column, of_b, mask=inside)


def rms_norm(tuning: Tuning, x: Tensor, w: Tensor | None, eps: float) -> Tensor:
    return _run(x, None, w, None, "rms", eps)[0]


def layer_norm(tuning: Tuning, x: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
    return _run(x, None, w, b, "layer", eps)[0]


def add_norm(
    tuning: Tuning,
    x: Tensor,
    residual: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    kind: str,
    eps: float,
) -> tuple[Tensor, Tensor]:
    y, total = _run(x, residual, w, b, kind, eps)
    assert total is not None
    return y, total


def _run(
    x: Tensor, residual: Tensor | None, w: Tensor | None, b: Tensor | None, kind: str, eps: float
) -> tuple[Tensor, Tensor | None]:
    launching.require_one_device(x, residual, w, b)
    y = x.new_empty(x.shape)
    total = None if residual is None else x.new_empty(x.shape)
    if x.numel():
        columns = x.shape[-1]
        block = block_of(columns)
        launch(
            _norm, (x.numel() // columns,), warps_of(block),
            rows_of(x), None if residual is None else rows_of(residual), optional(w), optional(b),
            y, total, columns, eps, LAYER=kind == "layer", BLOCK=block,
        )  # fmt: skip
    return y, total


def rms_norm_gradient(
    tuning: Tuning, grad: Tensor, needs: Sequence[bool], x: Tensor, w: Tensor | None, eps: float
) -> Gradients:
    found = _gradient(grad, x, None, None, w, "rms", eps, (*needs[:2], False))
    return found if found is NotImplemented else (*found[:2], None)


def layer_norm_gradient(
    tuning: Tuning,
    grad: Tensor,
    needs: Sequence[bool],
    x: Tensor,
    w: Tensor | None,
    b: Tensor | None,
    eps: float,
) -> Gradients:
    found = _gradient(grad, x, None, None, w, "layer", eps, needs[:3])
    return found if found is NotImplemented else (*found, None)


def add_norm_gradient(
    tuning: Tuning, grads: tuple[Tensor | None, Tensor | None], needs: Sequence[bool], x: Tensor,
    residual: Tensor, w: Tensor | None, b: Tensor | None, kind: str, eps: float,
) -> Gradients:  # fmt: skip
    """The total is added again rather than kept."""
    grad, total_grad = grads
    if grad is None:
        return NotImplemented
    asked = (needs[0] or needs[1], *needs[2:4])
    found = _gradient(grad, x, residual, total_grad, w, kind, eps, asked)
    if found is NotImplemented:
        return found
    dx, dw, db = found
    return dx if needs[0] else None, dx if needs[1] else None, dw, db, None, None


def _gradient(
    grad: Tensor, x: Tensor, residual: Tensor | None, total_grad: Tensor | None, w: Tensor | None,
    kind: str, eps: float, needs: Sequence[bool],
) -> Gradients:  # fmt: skip
    """dx, dw and db; the contract's serves rows longer than a program holds."""
    columns = x.shape[-1]
    if columns > LONGEST_GRADIENT or not x.numel():
        return NotImplemented
    rows = x.numel() // columns
    parts, each = parts_of(rows)
    dx = x.new_empty(x.shape) if needs[0] else None
    dw, db = (
        x.new_empty(parts, columns, dtype=torch.float32) if need else None for need in needs[1:]
    )  # fmt: skip
    block = power_of_two(columns)
    launch(
        _norm_gradient, (parts,), warps_of(block),
        rows_of(grad), rows_of(x), None if residual is None else rows_of(residual),
        None if total_grad is None else rows_of(total_grad), optional(w), dx, dw, db, rows,
        columns, eps, each, LAYER=kind == "layer", BLOCK=block,
    )  # fmt: skip
    dw, db = (None if part is None else part.sum(0).to(x.dtype) for part in (dw, db))
    return dx, dw, db
