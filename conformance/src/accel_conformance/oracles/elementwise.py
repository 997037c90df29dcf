"""bias_act, dropout_add and softmax in float64."""

from __future__ import annotations

import numpy as np

from accel_conformance.measure import Array
from accel_conformance.oracles.activation import activate, slope
from accel_conformance.oracles.random import Integers, kept
from accel_conformance.oracles.summed import Summed


def bias_act(x: Array, b: Array | None, act: str | None) -> Array:
    return activate(x if b is None else x + b, act)


def bias_act_gradient(
    grad: Array, x: Array, b: Array | None, act: str | None
) -> tuple[Summed | None, ...]:
    dz = grad * slope(x if b is None else x + b, act)
    return Summed.of(dz), None if b is None else Summed.over("...h->h", dz), None


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


def softmax(x: Array, mask: Array | None, scale: float) -> Array:
    """exp(z - max z) over its sum; of nothing but -inf it is 0."""
    z = x * scale if mask is None else x * scale + mask
    most = z.max(-1, keepdims=True, initial=-np.inf)
    e = np.exp(z - np.where(most == -np.inf, 0, most))
    total = e.sum(-1, keepdims=True)
    p: Array = e / np.where(total == 0, 1, total)
    return p


def softmax_gradient(
    grad: Array, x: Array, mask: Array | None, scale: float
) -> tuple[Summed | None, ...]:
    """With p = softmax(z): dp_i/dz_j = p_i (δ_ij - p_j)."""
    p = softmax(x, mask, scale)
    dz = Summed.of(p * grad, -p * (p * grad).sum(-1, keepdims=True))
    dx = Summed(dz.total * scale, dz.spread * abs(scale))
    return dx, None if mask is None else _summed_to(dz, mask.shape), None


def _summed_to(one: Summed, shape: tuple[int, ...]) -> Summed:
    """Over the dimensions along which ``shape`` was broadcast."""
    whole = one.total.shape
    sizes = (1,) * (len(whole) - len(shape)) + shape
    over = tuple(i for i, (size, all_of_it) in enumerate(zip(sizes, whole)) if size != all_of_it)
    total = one.total.sum(over, keepdims=True)
    return Summed(total, np.sqrt((one.spread**2).sum(over, keepdims=True))).reshape(*shape)
