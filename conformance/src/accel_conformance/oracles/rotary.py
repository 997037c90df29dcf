"""rotary in float64: pairs (a, b) become (a cos - b sin, b cos + a sin)."""

from __future__ import annotations

import numpy as np

from accel_conformance.measure import Array
from accel_conformance.oracles.summed import Summed

Columns = tuple[list[int], list[int]]


def rotary(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    a, b = _columns(cos, interleaved)
    y = x.copy()
    y[..., a] = x[..., a] * _per_head(cos) - x[..., b] * _per_head(sin)
    y[..., b] = x[..., b] * _per_head(cos) + x[..., a] * _per_head(sin)
    return y


def rotary_gradient(
    grad: Array, x: Array, cos: Array, sin: Array, interleaved: bool
) -> tuple[Summed | None, ...]:
    a, b = _columns(cos, interleaved)
    da, db = grad[..., a], grad[..., b]
    dx = Summed(grad.copy(), np.abs(grad))
    for columns, pair in (
        (a, Summed.of(da * _per_head(cos), db * _per_head(sin))),
        (b, Summed.of(db * _per_head(cos), -da * _per_head(sin))),
    ):
        dx.total[..., columns], dx.spread[..., columns] = pair.total, pair.spread
    over_heads = "...hr,...hr->...r"
    dcos = Summed.over(over_heads, da, x[..., a]) + Summed.over(over_heads, db, x[..., b])
    dsin = Summed.over(over_heads, db, x[..., a]) + Summed.over(over_heads, -da, x[..., b])
    return dx, dcos, dsin, None


def _columns(cos: Array, interleaved: bool) -> Columns:
    """Where the first and where the second elements of the pairs are."""
    pairs = range(cos.shape[-1])
    if interleaved:
        return [2 * i for i in pairs], [2 * i + 1 for i in pairs]
    return list(pairs), [i + len(pairs) for i in pairs]


def _per_head(table: Array) -> Array:
    return table[..., None, :]
