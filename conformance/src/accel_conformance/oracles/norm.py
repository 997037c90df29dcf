"""rms_norm, layer_norm and add_norm in float64."""

from __future__ import annotations

import numpy as np

from accel_conformance.measure import Array
from accel_conformance.oracles.bounded import stored
from accel_conformance.oracles.summed import Summed


def rms_norm(x: Array, w: Array | None, eps: float) -> Array:
    return x / _root(x, eps) * _weight(x, w)


def rms_norm_gradient(
    grad: Array, x: Array, w: Array | None, eps: float
) -> tuple[Summed | None, ...]:
    """With r = sqrt(mean(x²) + eps), y = x/r·w: dy_i/dx_j = w_i (δ_ij/r − x_i x_j / (H r³))."""
    root = _root(x, eps)
    g = grad * _weight(x, w)
    through_root = -x * _mean(g * x) / root**3
    dw = None if w is None else Summed.over("...h,...h->h", grad, x / root)
    return Summed.of(g / root, through_root), dw, None


def layer_norm(x: Array, w: Array | None, b: Array | None, eps: float) -> Array:
    deviation = _deviation(x)
    y = deviation / _root(deviation, eps) * _weight(x, w)
    return y if b is None else y + b


def layer_norm_gradient(
    grad: Array, x: Array, w: Array | None, b: Array | None, eps: float
) -> tuple[Summed | None, ...]:
    """That of rms_norm by the deviations, less its mean: each deviation has x less a mean."""
    deviation = _deviation(x)
    through_deviation, dw, _ = rms_norm_gradient(grad, deviation, w, eps)
    assert through_deviation is not None
    through_mean = Summed(
        -_mean(through_deviation.total),
        np.sqrt(_mean(through_deviation.spread**2) / max(x.shape[-1], 1)),
    )
    db = None if b is None else Summed.over("...h->h", grad)
    return through_deviation + through_mean, dw, db, None


def add_norm(
    x: Array, residual: Array, w: Array | None, b: Array | None, kind: str, eps: float
) -> tuple[Array, Array]:
    total = stored(x + residual)
    return layer_norm(total, w, b, eps) if kind == "layer" else rms_norm(total, w, eps), total


def add_norm_gradient(
    grads: tuple[Array, Array], x: Array, residual: Array, w: Array | None, b: Array | None,
    kind: str, eps: float,
) -> tuple[Summed | None, ...]:  # fmt: skip
    total, db = x + residual, None
    if kind == "layer":
        through, dw, db, _ = layer_norm_gradient(grads[0], total, w, b, eps)
    else:
        through, dw, _ = rms_norm_gradient(grads[0], total, w, eps)
    assert through is not None
    d_total = through + Summed.of(grads[1])
    return d_total, d_total, dw, db, None, None


def _deviation(x: Array) -> Array:
    return x - _mean(x)


def _mean(x: Array) -> Array:
    """Of the last dimension; 0 of nothing."""
    mean: Array = x.sum(-1, keepdims=True) / max(x.shape[-1], 1)
    return mean


def _root(x: Array, eps: float) -> Array:
    return np.sqrt(_mean(x**2) + eps)


def _weight(x: Array, w: Array | None) -> Array:
    return np.ones(x.shape[-1]) if w is None else w
