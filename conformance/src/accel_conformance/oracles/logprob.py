"""logprob in float64. m: a row · v: an id · h: an element of a hidden row"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from accel_conformance.measure import Array
from accel_conformance.oracles.linear import affine, affine_gradient
from accel_conformance.oracles.summed import Summed

Ids = NDArray[np.int64]


def logprob(
    x: Array, ids: Ids, w: Array | None, b: Array | None, scale: float, softcap: float | None,
    temperature: float,
) -> tuple[Array, Array]:  # fmt: skip
    z, _ = _adjusted(x if w is None else affine(x, w, b), scale, softcap, temperature)
    logs = _logarithms(z)
    return np.take_along_axis(logs, ids[..., None], -1)[..., 0], _entropy(logs)


def logprob_gradient(
    grads: tuple[Array, Array], x: Array, ids: Ids, w: Array | None, b: Array | None,
    scale: float, softcap: float | None, temperature: float,
) -> tuple[Summed | None, ...]:  # fmt: skip
    """With p = softmax(z): dlogprob/dz_v = δ_v - p_v, dH/dz_v = -p_v (log p_v + H)."""
    z, slope = _adjusted(x if w is None else affine(x, w, b), scale, softcap, temperature)
    logs = _logarithms(z)
    p, chosen, entropy = np.exp(logs), grads[0][..., None], grads[1][..., None]
    one = np.zeros_like(z)
    np.put_along_axis(one, ids[..., None], 1.0, -1)
    dz = Summed.of(
        chosen * one * slope,
        -chosen * p * slope,
        -entropy * _times(p, logs) * slope,
        -entropy * p * _entropy(logs)[..., None] * slope,
    )
    if w is None:
        return dz, None, None, None, None, None, None
    totals, spreads = affine_gradient(dz.total, x, w), affine_gradient(dz.spread, x, w)
    dx, dw, db = (Summed(of.total, over.spread) for of, over in zip(totals, spreads))
    return dx, None, dw, None if b is None else db, None, None, None


def _adjusted(
    z: Array, scale: float, softcap: float | None, temperature: float
) -> tuple[Array, Array]:
    """The logits that are used, and their derivative by those that came."""
    z, slope = z * scale, np.full_like(z, scale)
    if softcap is not None:
        z, slope = softcap * np.tanh(z / softcap), slope / np.cosh(z / softcap) ** 2
    return z / temperature, slope / temperature


def _logarithms(z: Array) -> Array:
    """log softmax(z), of the largest element last, so that nothing overflows."""
    if not z.size:
        return z
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _times(p: Array, logs: Array) -> Array:
    """p log p, 0 of p = 0."""
    return p * np.where(p == 0, 0.0, logs)


def _entropy(logs: Array) -> Array:
    return -_times(np.exp(logs), logs).sum(-1)
