"""attention in float64, one query at a time, from the definition of a span.

h: a head · j: a key that the query sees · d, e: elements of keys and of values
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from accel_conformance.measure import Array
from accel_conformance.oracles.bounded import stored
from accel_conformance.oracles.random import kept
from accel_conformance.oracles.summed import Summed

Spans = NDArray[np.int64]


@dataclass(frozen=True)
class Query:
    """One that sees a key: row ``row``, the ``i``-th of span ``b``. ``seen`` are the keys' rows,
    ``j`` the same counted in the span, ``distance`` from where the query stands."""

    row: int
    b: int
    i: int
    seen: slice
    j: NDArray[np.int64]
    distance: NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Of one query, [h, j]: probabilities, what dropout makes of one, and a score's derivative by
    the product of query and key."""

    p: Array
    share: Array
    slope: Array


def attention(
    q: Array, k: Array, v: Array, spans: Spans, mask: Array | None, slopes: Array | None,
    seed: Spans | None, causal: bool, scale: float | None, window: int | None,
    softcap: float | None, dropout: float,
) -> Array:  # fmt: skip
    y = np.zeros_like(q, shape=(*q.shape[:2], v.shape[2]))
    for one in _queries(spans, causal, window):
        s = _scores(one, q, k, mask, slopes, seed, _scale(q, scale), softcap, dropout)
        y[one.row] = np.einsum("hj,jhe->he", stored(s.p * s.share), _per_head(v[one.seen], q))
    return y


def attention_gradient(
    grad: Array, q: Array, k: Array, v: Array, spans: Spans, mask: Array | None,
    slopes: Array | None, seed: Spans | None, causal: bool, scale: float | None,
    window: int | None, softcap: float | None, dropout: float,
) -> tuple[Summed | None, ...]:  # fmt: skip
    """With y = Σ_j c_j p_j v_j and p = softmax(s): ds_j = p_j (c_j dy·v_j − Σ_l p_l c_l dy·v_l)."""
    given = {"q": q, "k": k, "v": v, "mask": mask, "slopes": slopes}
    shapes = {name: t.shape for name, t in given.items() if t is not None}
    totals, squares = ({name: np.zeros(shape) for name, shape in shapes.items()} for _ in range(2))
    for one in _queries(spans, causal, window):
        s = _scores(one, q, k, mask, slopes, seed, _scale(q, scale), softcap, dropout)
        keys, values, dy = _per_head(k[one.seen], q), _per_head(v[one.seen], q), grad[one.row]
        dp = s.share * np.einsum("he,jhe->hj", dy, values)
        ds = s.p * (dp - (s.p * dp).sum(1, keepdims=True))
        # What is subtracted from what in ds is as large as this.
        size = s.p * np.sqrt(dp**2 + ((s.p * dp) ** 2).sum(1, keepdims=True))
        for into, power, of_scores in ((totals, 1, ds), (squares, 2, size)):
            dz, weights = (of_scores * s.slope) ** power, (s.p * s.share) ** power
            into["q"][one.row] += np.einsum("hj,jhd->hd", dz, keys**power)
            into["k"][one.seen] += _per_group(np.einsum("hj,hd->jhd", dz, q[one.row] ** power), k)
            into["v"][one.seen] += _per_group(np.einsum("hj,he->jhe", weights, dy**power), v)
            if mask is not None:
                b, i = _place(one, mask)
                by_head = of_scores**power
                into["mask"][b, :, i, one.j] += (
                    by_head if mask.shape[1] > 1 else by_head.sum(0, keepdims=True)
                ).T
            if slopes is not None:
                into["slopes"] += ((of_scores * one.distance) ** power).sum(1)
    found = {name: Summed(totals[name], np.sqrt(squares[name])) for name in shapes}
    dq, dk, dv, dmask, dslopes = map(found.get, given)
    return dq, dk, dv, None, dmask, dslopes, *[None] * 6


def _queries(spans: Spans, causal: bool, window: int | None) -> Iterator[Query]:
    """All that see any key."""
    for b, (q_start, q_len, k_start, k_len) in enumerate(spans.tolist()):
        for i in range(q_len):
            at = i + k_len - q_len
            first, last = 0, k_len
            if causal:
                last = min(last, at + 1)
            if window is not None:
                first, last = max(first, at - window + 1), min(last, at + window)
            if last > first:
                j = np.arange(first, last)
                seen = slice(k_start + first, k_start + last)
                yield Query(q_start + i, b, i, seen, j, j - at)


def _scores(
    one: Query, q: Array, k: Array, mask: Array | None, slopes: Array | None, seed: Spans | None,
    scale: float, softcap: float | None, dropout: float,
) -> Scores:  # fmt: skip
    z = np.einsum("hd,jhd->hj", q[one.row], _per_head(k[one.seen], q)) * scale
    slope = np.full_like(z, scale)
    if softcap is not None:
        slope = slope / np.cosh(z / softcap) ** 2
        z = softcap * np.tanh(z / softcap)
    if mask is not None:
        b, i = _place(one, mask)
        z = z + mask[b, :, i, one.j].T
    if slopes is not None:
        z = z + slopes[:, None] * one.distance
    share = np.ones_like(z)
    if dropout > 0:
        assert seed is not None
        heads = len(z)
        rows = (np.int64(one.b) * heads + np.arange(heads)) * 2**32 + one.i
        left = kept(seed, rows, int(one.j[-1]) + 1, dropout)[:, one.j]
        share = left / (1 - dropout) if dropout < 1 else 0.0 * left
    return Scores(_softmax(z), share, slope)


def _softmax(z: Array) -> Array:
    """Of the last dimension; 0 of nothing but -inf, whose elements are not seen."""
    top = z.max(1, keepdims=True)
    e = np.exp(z - np.where(top == -np.inf, 0, top))
    total = e.sum(1, keepdims=True)
    p: Array = e / np.where(total == 0, 1, total)
    return p


def _place(one: Query, mask: Array) -> tuple[int, int]:
    """The query's span and row in a mask, which may have one for all."""
    return min(one.b, mask.shape[0] - 1), min(one.i, mask.shape[2] - 1)


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
