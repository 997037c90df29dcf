"""dropout_add in float64."""

from __future__ import annotations

import numpy as np

from accel_conformance.measure import Array
from accel_conformance.oracles.random import Integers, kept
from accel_conformance.oracles.summed import Summed


def dropout_add(
    x: Array, residual: Array | None, b: Array | None, seed: Integers | None,
    rows: Integers | None, p: float,
) -> Array:  # fmt: skip
    z = _dropped(x if b is None else x + b, seed, rows, p)
    return z if residual is None else residual + z


def dropout_add_gradient(
    grad: Array, x: Array, residual: Array | None, b: Array | None, seed: Integers | None,
    rows: Integers | None, p: float,
) -> tuple[Summed | None, ...]:  # fmt: skip
    dz = _dropped(grad, seed, rows, p)
    return (
        Summed.of(dz),
        None if residual is None else Summed.of(grad),
        None if b is None else Summed.over("...h->h", dz),
        None,
        None,
        None,
    )


def _dropped(z: Array, seed: Integers | None, rows: Integers | None, p: float) -> Array:
    if seed is None:
        return z
    if rows is None:
        rows = np.arange(int(np.prod(z.shape[:-1]))).reshape(z.shape[:-1])
    return np.where(kept(seed, rows, z.shape[-1], p), z / (1 - p) if p < 1 else 0.0, 0.0)
