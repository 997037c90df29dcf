"""attention's backward kernels: probabilities are computed again, of the log of a row's sum.

With scores s, probabilities p, what dropout leaves w of them, and y = w v: dw = dy v^T, dp = dw
where kept, ds = p (dp - sum(p dp)), and that sum is dy y. A program has the gradient of a tile of
queries, or of a block of keys, and goes through all that has a share in it in order: nothing is
added atomically, so the same call has the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from accel.triton_kernels.attention_rows import (
    find,
    left,
    load_keys,
    scored,
    seen_by,
    span_of,
)

ROWS = 32  # of a tile at most: gradients need not be those of a row alone


@triton.jit
def deltas(grad, y, found, heads, e_size, WIDTH: tl.constexpr):
    """dy y of a query and head."""
    row = tl.program_id(0).to(tl.int64) * heads + tl.program_id(1)
    column = tl.arange(0, WIDTH)
    at = row * e_size + column
    dy = tl.load(grad + at, mask=column < e_size, other=0.0).to(tl.float32)
    value = tl.load(y + at, mask=column < e_size, other=0.0).to(tl.float32)
    tl.store(found + row, tl.sum(dy * value))


@triton.jit
def _score_gradient(
    queries, keys, dy, values, log_sum, delta, seed, number, heads, head, i, at, j, k_len, mask,
    slopes, mask_span, mask_head, mask_query, scale, softcap, window, least, survivor,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """(what dropout leaves of the probabilities, gradient of the products), [ROWS, KEYS]."""
    s = tl.dot(queries, keys, input_precision="ieee")
    s, slope = scored(
        s, number, heads, head, i, at, j, k_len, mask, slopes, mask_span, mask_head, mask_query,
        scale, softcap, window, CAUSAL, WINDOW, CAPPED,
    )  # fmt: skip
    p = tl.exp(s - log_sum)
    dp = tl.dot(dy, values, input_precision="ieee")
    stay = p
    if seed is not None:
        stays = left(seed, number, heads, head, i, j, least)
        stay = tl.where(stays, p * survivor, 0.0)
        dp = tl.where(stays, dp * survivor, 0.0)
    ds = p * (dp - delta)
    if CAPPED:
        ds = ds * slope
    # What is hidden takes no part, whatever it holds.
    return stay, tl.where(s == float("-inf"), 0.0, ds) * scale


@triton.jit(do_not_specialize=["m", "n", "count"])
def of_queries(
    q, k, v, spans, mask, slopes, seed, grad, log_sums, deltas, dq,
    m, n, count, heads, group, d_size, e_size, most_queries, most_keys,
    q_row, q_head, k_row, k_head, v_row, v_head, mask_span, mask_head, mask_query,
    scale, softcap, window, least, survivor,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, DEPTH: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SPANS: tl.constexpr,
):  # fmt: skip
    g = tl.program_id(1).to(tl.int64)
    number, first = find(spans, count, tl.program_id(0).to(tl.int64), group, ROWS, SPANS)
    if number < count:
        q_start, q_len, k_start, k_len, _sound = span_of(
            spans, number, m, n, most_queries, most_keys
        )
        r = (first + tl.arange(0, ROWS))[:, None]
        query = r // group
        valid = (r < q_len * group) & (q_start + query >= 0) & (q_start + query < m)
        i = query.to(tl.int32)
        head = tl.where(valid, g * group + r % group, heads).to(tl.int32)
        shift = (k_len - q_len).to(tl.int32)
        last = tl.minimum((first + ROWS - 1) // group, q_len - 1).to(tl.int32)
        low, high = seen_by(
            (first // group).to(tl.int32) + shift, last + shift, k_len, window, CAUSAL, WINDOW
        )
        depth = tl.arange(0, DEPTH)[None, :]
        width = tl.arange(0, WIDTH)[None, :]
        place = (q_start + query) * heads + head
        queries = tl.load(
            q + (q_start + query) * q_row + head.to(tl.int64) * q_head + depth,
            mask=valid & (depth < d_size), other=0.0,
        )  # fmt: skip
        dy = tl.load(grad + place * e_size + width, mask=valid & (width < e_size), other=0.0)
        log_sum = tl.load(log_sums + place, mask=valid, other=float("inf"))
        delta = tl.load(deltas + place, mask=valid, other=0.0)
        total = tl.zeros((ROWS, DEPTH), tl.float32)
        for key in range(low // KEYS * KEYS, high, KEYS):
            j = key + tl.arange(0, KEYS)
            keys = load_keys(k, k_start, j[:, None], k_len, g, k_row, k_head, depth, d_size)
            values = load_keys(v, k_start, j[:, None], k_len, g, v_row, v_head, width, e_size)
            _stay, ds = _score_gradient(
                queries, tl.trans(keys), dy, tl.trans(values), log_sum, delta, seed, number, heads,
                head, i, i + shift, j[None, :], k_len, mask, slopes, mask_span, mask_head,
                mask_query, scale, softcap, window, least, survivor, CAUSAL, WINDOW, CAPPED,
            )  # fmt: skip
            total = tl.dot(ds.to(k.dtype.element_ty), keys, total, input_precision="ieee")
        at = (place * d_size) + depth
        tl.store(dq + at, total.to(dq.dtype.element_ty), mask=valid & (depth < d_size))


@triton.jit(do_not_specialize=["m", "n", "count"])
def of_keys(
    q, k, v, spans, mask, slopes, seed, grad, log_sums, deltas, dk, dv,
    m, n, count, heads, group, d_size, e_size, most_queries, most_keys,
    q_row, q_head, k_row, k_head, v_row, v_head, mask_span, mask_head, mask_query,
    scale, softcap, window, least, survivor,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, DEPTH: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SPANS: tl.constexpr,
):  # fmt: skip
    """Of a block of rows of k and v beside one head: the shares of every span that has some of
    them, one after another, since spans may share keys."""
    start = tl.program_id(0).to(tl.int64) * KEYS
    g = tl.program_id(1).to(tl.int64)
    b = tl.arange(0, SPANS)
    k_starts = tl.load(spans + b * 4 + 2, mask=b < count, other=0)
    k_ends = k_starts + tl.load(spans + b * 4 + 3, mask=b < count, other=0)
    meets = (b < count) & (k_starts < start + KEYS) & (k_ends > start)
    from_span = tl.min(tl.where(meets, b, count))
    to_span = tl.max(tl.where(meets, b + 1, 0))

    row = start + tl.arange(0, KEYS)
    depth = tl.arange(0, DEPTH)[None, :]
    width = tl.arange(0, WIDTH)[None, :]
    total_k = tl.zeros((KEYS, DEPTH), tl.float32)
    total_v = tl.zeros((KEYS, WIDTH), tl.float32)
    keys = load_keys(k, 0, row[:, None], n, g, k_row, k_head, depth, d_size)
    values = load_keys(v, 0, row[:, None], n, g, v_row, v_head, width, e_size)
    for number in range(from_span, to_span):
        q_start, q_len, k_start, k_len, _sound = span_of(
            spans, number, m, n, most_queries, most_keys
        )
        shift = (k_len - q_len).to(tl.int32)
        # Of the span, counted from its first; 'k_len' is behind all that can be seen.
        j = (row - k_start).to(tl.int32)
        j = tl.where(j < 0, k_len, j)
        low = tl.maximum(start - k_start, 0).to(tl.int32)
        high = tl.minimum(start + KEYS - k_start, k_len).to(tl.int32)
        # The queries that see any of them.
        first_query = low * 0
        end_query = q_len.to(tl.int32)
        if CAUSAL:
            first_query = tl.maximum(low - shift, 0)
        elif WINDOW:
            first_query = tl.maximum(low - window - shift + 1, 0)
        if WINDOW:
            end_query = tl.minimum(high - 1 + window - shift, end_query)
        end_query = tl.where(low < high, end_query, 0)
        for first in range(first_query * group // ROWS * ROWS, end_query * group, ROWS):
            r = (first + tl.arange(0, ROWS))[:, None].to(tl.int64)
            query = r // group
            valid = r < q_len * group
            i = query.to(tl.int32)
            head = tl.where(valid, g * group + r % group, heads).to(tl.int32)
            place = (q_start + query) * heads + head
            queries = tl.load(
                q + (q_start + query) * q_row + head.to(tl.int64) * q_head + depth,
                mask=valid & (depth < d_size), other=0.0,
            )  # fmt: skip
            dy = tl.load(grad + place * e_size + width, mask=valid & (width < e_size), other=0.0)
            log_sum = tl.load(log_sums + place, mask=valid, other=float("inf"))
            delta = tl.load(deltas + place, mask=valid, other=0.0)
            stay, ds = _score_gradient(
                queries, tl.trans(keys), dy, tl.trans(values), log_sum, delta, seed, number, heads,
                head, i, i + shift, j[None, :], k_len, mask, slopes, mask_span, mask_head,
                mask_query, scale, softcap, window, least, survivor, CAUSAL, WINDOW, CAPPED,
            )  # fmt: skip
            narrow = k.dtype.element_ty
            total_v = tl.dot(tl.trans(stay.to(narrow)), dy, total_v, input_precision="ieee")
            total_k = tl.dot(tl.trans(ds.to(narrow)), queries, total_k, input_precision="ieee")
    at = row[:, None] * (heads // group) + g
    held = row[:, None] < n
    if dk is not None:
        total_k = total_k.to(k.dtype.element_ty)
        tl.store(dk + at * d_size + depth, total_k, mask=held & (depth < d_size))
    if dv is not None:
        total_v = total_v.to(v.dtype.element_ty)
        tl.store(dv + at * e_size + width, total_v, mask=held & (width < e_size))
