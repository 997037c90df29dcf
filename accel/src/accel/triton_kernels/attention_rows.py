"""Which rows a program of attention has, which keys they see, and what becomes of their products.

A span's rows are its queries in the H/G heads that read one head of keys, query by query: row r is
query r // group in head r % group of the group. A tile is some rows of one span. Which tiles there
are is read from the spans on the device, so that a launch waits for nothing and can be recorded:
there are no more than the rows of all queries fill, and one more for each span.
"""

from __future__ import annotations

import triton
import triton.language as tl

from accel.triton_kernels.curves import tanh
from accel.triton_kernels.random import kept


@triton.jit
def find(spans, count, tile, group, ROWS: tl.constexpr, SPANS: tl.constexpr):
    """(number of the span, first row of it) of a tile; the number is ``count`` behind the last."""
    b = tl.arange(0, SPANS)
    q_len = tl.load(spans + b * 4 + 1, mask=b < count, other=0)
    tiles = (tl.maximum(q_len, 0) * group + ROWS - 1) // ROWS
    number = tl.sum((tl.cumsum(tiles) <= tile).to(tl.int32))
    number = tl.minimum(number, count)
    before = tl.sum(tl.where(b < number, tiles, 0))
    return number, (tile - before) * ROWS


@triton.jit
def span_of(spans, number, m, n, most_queries, most_keys):
    """(q_start, q_len, k_start, k_len, whether it is within q's and k's rows and the mask). Of one
    that is not, no key is read."""
    q_start = tl.load(spans + number * 4)
    q_len = tl.load(spans + number * 4 + 1)
    k_start = tl.load(spans + number * 4 + 2)
    k_len = tl.load(spans + number * 4 + 3)
    sound = (q_start >= 0) & (q_start + q_len <= m) & (q_len <= most_queries)
    sound = sound & (k_start >= 0) & (k_len >= 0) & (k_start + k_len <= n) & (k_len <= most_keys)
    k_len = tl.where(sound, k_len, 0)
    return q_start, q_len, k_start, k_len.to(tl.int32), sound


@triton.jit
def seen_by(first_at, last_at, k_len, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr):
    """The keys [low, high) that any query sees that stands between the two."""
    low = first_at * 0
    high = low + k_len
    if WINDOW:
        low = tl.maximum(first_at - window + 1, 0)
        high = tl.minimum(last_at + window, k_len)
    if CAUSAL:
        high = tl.minimum(last_at + 1, k_len)
    return low, tl.maximum(high, 0)


@triton.jit
def load_keys(k, k_start, j, k_len, g, row, head, column, size):
    """[len(j), len(column)] or its transpose, as ``j`` and ``column`` are laid: 0 outside."""
    at = (k_start + j) * row + g * head + column
    return tl.load(k + at, mask=(j < k_len) & (column < size), other=0.0)


@triton.jit
def scored(
    s, number, heads, head, i, at, j, k_len, mask, slopes, mask_span, mask_head, mask_query, scale,
    softcap, window, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Scores of products ``s``, -inf where a key is hidden, whatever it holds; and the derivative
    of the cap. ``head``, ``i`` and ``at`` are the rows', [ROWS, 1]; ``j`` the keys', [1, KEYS]."""
    s = s * scale
    slope = s
    if CAPPED:
        t = tanh(s / softcap)
        s = softcap * t
        slope = 1.0 - t * t
    seen = (j < k_len) & (head < heads)
    if CAUSAL:
        seen = seen & (j <= at)
    if WINDOW:
        seen = seen & (j > at - window)
        if not CAUSAL:
            seen = seen & (j < at + window)
    if mask is not None:
        place = tl.cast(number, tl.int64) * mask_span + head.to(tl.int64) * mask_head
        place = place + i.to(tl.int64) * mask_query + j
        added = tl.load(mask + place, mask=seen, other=0.0).to(tl.float32)
        s = tl.where(added == float("-inf"), added, s + added)
    if slopes is not None:
        of_head = tl.load(slopes + head, mask=head < heads, other=0.0)
        s = tl.where(s == float("-inf"), s, s + of_head * (j - at).to(tl.float32))
    return tl.where(seen, s, float("-inf")), slope


@triton.jit
def left(seed, number, heads, head, i, j, least):
    """Which probabilities dropout leaves."""
    row = ((number * heads + head).to(tl.int64) << 32) + i
    return kept(tl.load(seed), row, j, least)
