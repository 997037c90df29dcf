"""norm_linear, grouped_linear and tiled_mlp in float64: compositions of sums and norms.

Where a sum flows back through another step, so does its spread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_conformance.measure import Array
from accel_conformance.oracles import norm
from accel_conformance.oracles.activation import activate, slope
from accel_conformance.oracles.bounded import stored
from accel_conformance.oracles.linear import affine, affine_gradient, linear, linear_gradient
from accel_conformance.oracles.summed import Summed

Ends = NDArray[np.int64]


# -- norm_linear -------------------------------------------------------------------------------


def norm_linear(
    x: Array, w: Array, norm_w: Array | None, norm_b: Array | None, b: Array | None, kind: str,
    eps: float, act: str | None, out_dtype: Any = None,
) -> Array:  # fmt: skip
    return linear(stored(_normed(x, norm_w, norm_b, kind, eps)), w, b, act)


def norm_linear_gradient(
    grad: Array, x: Array, w: Array, norm_w: Array | None, norm_b: Array | None, b: Array | None,
    kind: str, eps: float, act: str | None, out_dtype: Any = None,
) -> tuple[Summed | None, ...]:  # fmt: skip
    normed = _normed(x, norm_w, norm_b, kind, eps)
    d_normed, dw, db, *_ = linear_gradient(grad, normed, w, b, act)
    assert d_normed is not None

    def through(of: Array) -> tuple[Summed | None, ...]:
        if kind == "rms":
            dx, d_norm_w, _ = norm.rms_norm_gradient(of, x, norm_w, eps)
            return dx, d_norm_w, None
        return norm.layer_norm_gradient(of, x, norm_w, norm_b, eps)[:3]

    dx, d_norm_w, d_norm_b = map(_widened, through(d_normed.total), through(d_normed.spread))
    return dx, dw, d_norm_w, d_norm_b, db, None, None, None, None


def _normed(x: Array, norm_w: Array | None, norm_b: Array | None, kind: str, eps: float) -> Array:
    if kind == "rms":
        return norm.rms_norm(x, norm_w, eps)
    return norm.layer_norm(x, norm_w, norm_b, eps)


def _widened(found: Summed | None, of_spread: Summed | None) -> Summed | None:
    """A sum of sums, as uncertain as they are."""
    if found is None or of_spread is None:
        return None
    return Summed(found.total, np.hypot(found.spread, of_spread.spread))


# -- grouped_linear ----------------------------------------------------------------------------


def grouped_linear(
    x: Array, w: Array, ends: Ends, b: Array | None, act: str | None, out_dtype: Any = None
) -> Array:
    y = np.zeros_like(x, shape=(x.shape[0], w.shape[1]))
    for e, rows in _experts(ends):
        y[rows] = linear(x[rows], w[e], None if b is None else b[e], act)
    return y


def grouped_linear_gradient(
    grad: Array, x: Array, w: Array, ends: Ends, b: Array | None, act: str | None,
    out_dtype: Any = None,
) -> tuple[Summed | None, ...]:  # fmt: skip
    dx, dw, db = (
        None if t is None else Summed(np.zeros(t.shape), np.zeros(t.shape)) for t in (x, w, b)
    )
    for e, rows in _experts(ends):
        bias = None if b is None else b[e]
        of_x, of_w, of_b, *_ = linear_gradient(grad[rows], x[rows], w[e], bias, act)
        for whole, at, part in ((dx, rows, of_x), (dw, e, of_w), (db, e, of_b)):
            if whole is not None and part is not None:
                whole.total[at], whole.spread[at] = part.total, part.spread
    return dx, dw, None, db, None, None


def _experts(ends: Ends) -> Iterator[tuple[int, slice]]:
    start = 0
    for e, end in enumerate(ends.tolist()):
        yield e, slice(start, end)
        start = end


# -- tiled_mlp ---------------------------------------------------------------------------------


def tiled_mlp(
    x: Array, w_up: Array, w_down: Array, w_gate: Array | None, b_up: Array | None,
    b_down: Array | None, b_gate: Array | None, act: str, tile_rows: int,
) -> Array:  # fmt: skip
    up = affine(x, w_up, b_up)
    if w_gate is None:
        return affine(stored(activate(up, act)), w_down, b_down)
    gate = affine(x, w_gate, b_gate)
    return affine(stored(activate(gate, act) * up), w_down, b_down)


def tiled_mlp_gradient(
    grad: Array, x: Array, w_up: Array, w_down: Array, w_gate: Array | None, b_up: Array | None,
    b_down: Array | None, b_gate: Array | None, act: str, tile_rows: int,
) -> tuple[Summed | None, ...]:  # fmt: skip
    up = affine(x, w_up, b_up)
    gate = None if w_gate is None else affine(x, w_gate, b_gate)
    hidden = activate(up, act) if gate is None else activate(gate, act) * up
    d_hidden, dw_down, db_down = affine_gradient(grad, hidden, w_down)
    by_up = slope(up, act) if gate is None else activate(gate, act)
    dx, dw_up, db_up = _through(d_hidden, by_up, x, w_up)
    dw_gate = db_gate = None
    if w_gate is not None and gate is not None:
        through_gate, dw_gate, db_gate = _through(d_hidden, up * slope(gate, act), x, w_gate)
        dx = dx + through_gate
    return (
        dx,
        dw_up,
        dw_down,
        dw_gate,
        None if b_up is None else db_up,
        None if b_down is None else db_down,
        None if b_gate is None else db_gate,
        None,
        None,
    )


def _through(dy: Summed, factor: Array, x: Array, w: Array) -> tuple[Summed, Summed, Summed]:
    """Gradients of x, w and b where ``factor * (x w + b)`` has the gradient ``dy``."""
    found = affine_gradient(dy.total * factor, x, w)
    spreads = affine_gradient(dy.spread * factor, x, w)
    dx, dw, db = (Summed(f.total, np.hypot(f.spread, s.spread)) for f, s in zip(found, spreads))
    return dx, dw, db
