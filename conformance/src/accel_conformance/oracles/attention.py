"""attention in float64, one query at a time, from the definition of a span.

h: a head · j: a key that the query sees · d, e: elements of keys and of values
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from accel_conformance.measure import Array
from accel_conformance.oracles.summed import Summed

Spans = NDArray[np.int64]


def attention(
    q: Array, k: Array, v: Array, spans: Spans, causal: bool, scale: float | None
) -> Array:
    y = np.zeros((*q.shape[:2], v.shape[2]))
    for i, seen in _queries(spans, causal):
        p = _probabilities(q[i], _per_head(k[seen], q), _scale(q, scale))
        y[i] = np.einsum("hj,jhe->he", p, _per_head(v[seen], q))
    return y


def attention_gradient(
    grad: Array, q: Array, k: Array, v: Array, spans: Spans, causal: bool, scale: float | None
) -> tuple[Summed | None, ...]:
    """With y = Σ_j p_j v_j and p = softmax(s): ds_j = p_j (dy·v_j − Σ_l p_l dy·v_l)."""
    factor = _scale(q, scale)
    totals, squares = ([np.zeros(t.shape) for t in (q, k, v)] for _ in range(2))
    for i, seen in _queries(spans, causal):
        keys, values = _per_head(k[seen], q), _per_head(v[seen], q)
        p = _probabilities(q[i], keys, factor)
        dp = np.einsum("he,jhe->hj", grad[i], values)
        mean = (p * dp).sum(1, keepdims=True)
        ds = p * (dp - mean) * factor
        # What is subtracted from what in ds is as large as this.
        size = p * np.sqrt(dp**2 + ((p * dp) ** 2).sum(1, keepdims=True)) * abs(factor)
        for into, one, weights in ((totals, 1, ds), (squares, 2, size)):
            into[0][i] += np.einsum("hj,jhd->hd", weights**one, keys**one)
            into[1][seen] += _per_group(np.einsum("hj,hd->jhd", weights**one, q[i] ** one), k)
            into[2][seen] += _per_group(np.einsum("hj,he->jhe", p**one, grad[i] ** one), v)
    dq, dk, dv = (Summed(total, np.sqrt(square)) for total, square in zip(totals, squares))
    return dq, dk, dv, None, None, None


def _queries(spans: Spans, causal: bool) -> Iterator[tuple[int, slice]]:
    """(query, keys it sees), for all that see any."""
    for q_start, q_len, k_start, k_len in spans.tolist():
        for i in range(q_len):
            count = min(k_len, i + k_len - q_len + 1) if causal else k_len
            if count > 0:
                yield q_start + i, slice(k_start, k_start + count)


def _probabilities(q: Array, keys: Array, scale: float) -> Array:
    scores = np.einsum("hd,jhd->hj", q, keys) * scale
    e = np.exp(scores - scores.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def _scale(q: Array, scale: float | None) -> float:
    return float(max(q.shape[2], 1)) ** -0.5 if scale is None else scale


def _per_head(t: Array, q: Array) -> Array:
    """[j, G, ...] as [j, H, ...]: each key head as often as heads read it."""
    return np.repeat(t, q.shape[1] // t.shape[1], axis=1)


def _per_group(t: Array, like: Array) -> Array:
    """[j, H, ...] summed to [j, G, ...]."""
    j, heads, width = t.shape
    groups = like.shape[1]
    return t.reshape(j, groups, heads // groups, width).sum(2)
