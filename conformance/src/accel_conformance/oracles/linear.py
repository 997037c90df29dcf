"""linear and its kin in float64: sums written as sums over named indices.

m: a row, all leading dimensions together · k: what is summed over · n: a column of the result
r: a column of the inner product
"""

from __future__ import annotations

from typing import Any

import numpy as np

from accel_conformance.measure import Array
from accel_conformance.oracles.activation import activate, slope
from accel_conformance.oracles.bounded import stored
from accel_conformance.oracles.summed import Summed


def linear(x: Array, w: Array, b: Array | None, act: str | None, out_dtype: Any = None) -> Array:
    return activate(affine(x, w, b), act)


def linear_gradient(
    grad: Array, x: Array, w: Array, b: Array | None, act: str | None, out_dtype: Any = None
) -> tuple[Summed | None, ...]:
    dx, dw, db = affine_gradient(grad * slope(affine(x, w, b), act), x, w)
    return dx, dw, None if b is None else db, None, None


def gated_linear(
    x: Array, w_gate: Array, w_up: Array, b_gate: Array | None, b_up: Array | None, act: str,
    out_dtype: Any = None,
) -> Array:  # fmt: skip
    return activate(affine(x, w_gate, b_gate), act) * affine(x, w_up, b_up)


def gated_linear_gradient(
    grad: Array, x: Array, w_gate: Array, w_up: Array, b_gate: Array | None, b_up: Array | None,
    act: str, out_dtype: Any = None,
) -> tuple[Summed | None, ...]:  # fmt: skip
    gate, up = affine(x, w_gate, b_gate), affine(x, w_up, b_up)
    dx_gate, dw_gate, db_gate = affine_gradient(grad * up * slope(gate, act), x, w_gate)
    dx_up, dw_up, db_up = affine_gradient(grad * activate(gate, act), x, w_up)
    return (
        dx_gate + dx_up,
        dw_gate,
        dw_up,
        None if b_gate is None else db_gate,
        None if b_up is None else db_up,
        None,
        None,
    )


def lora_linear(
    x: Array, w: Array, lora_a: Array, lora_b: Array, b: Array | None, scale: float,
    out_dtype: Any = None,
) -> Array:  # fmt: skip
    return affine(x, w, b) + scale * affine(affine(x, lora_a, None), lora_b, None)


def lora_linear_gradient(
    grad: Array, x: Array, w: Array, lora_a: Array, lora_b: Array, b: Array | None, scale: float,
    out_dtype: Any = None,
) -> tuple[Summed | None, ...]:  # fmt: skip
    dx, dw, db = affine_gradient(grad, x, w)
    d_inner, d_up, _ = affine_gradient(grad * scale, affine(x, lora_a, None), lora_b)
    dx_lora, d_down, _ = affine_gradient(d_inner.total, x, lora_a)
    return dx + dx_lora, dw, d_down, d_up, None if b is None else db, None, None


def tiled_linear(
    x: Array, w: Array, b: Array | None, partial: Array | None, out_dtype: Any = None
) -> Array:
    if partial is None or b is None:
        return affine(x, w, b) + (0.0 if partial is None else partial)
    return affine(x, w, None) + stored(partial + b)


def tiled_linear_gradient(
    grad: Array, x: Array, w: Array, b: Array | None, partial: Array | None, out_dtype: Any = None
) -> tuple[Summed | None, ...]:
    dx, dw, db = affine_gradient(grad, x, w)
    through = None if partial is None else Summed.of(grad)
    return dx, dw, None if b is None else db, through, None


def affine(x: Array, w: Array, b: Array | None) -> Array:
    z = np.einsum("mk,nk->mn", _rows(x), w, optimize=True)
    return (z if b is None else z + b).reshape(*x.shape[:-1], w.shape[0])


def affine_gradient(dz: Array, x: Array, w: Array) -> tuple[Summed, Summed, Summed]:
    """Gradients of x, w and b from that of ``x w + b``."""
    rows = _rows(dz)
    dx = Summed.over("mn,nk->mk", rows, w).reshape(*x.shape)
    return dx, Summed.over("mn,mk->nk", rows, _rows(x)), Summed.over("mn->n", rows)


def _rows(x: Array) -> Array:
    # The count is spelt out: numpy cannot infer it beside a last dimension of 0.
    return x.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])
