"""rms_norm in float64."""

from __future__ import annotations

import numpy as np

from accel_conformance.measure import Array
from accel_conformance.oracles.summed import Summed


def rms_norm(x: Array, w: Array | None, eps: float) -> Array:
    return x / _root(x, eps) * _weight(x, w)


def rms_norm_gradient(
    grad: Array, x: Array, w: Array | None, eps: float
) -> tuple[Summed | None, ...]:
    """With r = sqrt(mean(x²) + eps), y = x/r·w: dy_i/dx_j = w_i (δ_ij/r − x_i x_j / (H r³))."""
    root = _root(x, eps)
    g = grad * _weight(x, w)
    through_root = -x * (g * x).mean(-1, keepdims=True) / root**3
    dw = None if w is None else Summed.over("...h,...h->h", grad, x / root)
    return Summed.of(g / root, through_root), dw, None


def _root(x: Array, eps: float) -> Array:
    return np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def _weight(x: Array, w: Array | None) -> Array:
    return np.ones(x.shape[-1]) if w is None else w
