"""attention's forward kernels.

A query's keys are taken in one order, counted from the first of its span: blocks of KEYS, and
SPLIT keys make a split. Within a split the sums of weights and of weighted values start anew; the
splits are then merged one after another. So a program may have all splits of its rows, or one of
them: where few rows are under way, as in a decode step, the splits go to programs of their own, and
another kernel merges what these have left. What is computed is the same, operation by operation.

A tile has ROWS rows whatever their number, so that every product is the same instruction (see
:mod:`accel.triton_kernels.product`), and what a row does not see changes nothing of it: weights 0,
added to sums that keep their scale. Hence a row's bits are its own, in a prefill and in a step.
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

# What differs from call to call. Of the mask's strides the compiler must not know more in one call
# than in another either: it might lay out what is added to scores, and so their sum, otherwise.
_VARYING = ("m", "n", "count", "splits", "most_queries", "most_keys")
_ANYWHERE = ("spans", "mask", "slopes", "seed")
_VARYING_MASK = (*_VARYING, "mask_span", "mask_head", "mask_query")


@triton.jit
def _merged(top, total, sums, other_top, other_total, other_sums):
    """Sums of weights exp(s - top) and of weighted values, of two sets of keys."""
    highest = tl.maximum(top, other_top)
    # While every score is -inf any finite number serves; -inf itself would make them NaN.
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    factor, other_factor = tl.exp(top - shift), tl.exp(other_top - shift)
    total = total * factor + other_total * other_factor
    sums = sums * factor[:, None] + other_sums * other_factor[:, None]
    return highest, total, sums


@triton.jit
def _only_seen(
    sums, before, weights, hidden, v, k_start, key, k_len, g, v_row, v_head, width, e_size,
    KEYS: tl.constexpr,
):  # fmt: skip
    """``sums``, which are ``before + weights @ values``, made again where a value is infinite or
    NaN: to rows that it is hidden from it came times 0, which is NaN. What is finite is the same
    product; what is not is added to the rows that see it."""
    lane = tl.arange(0, KEYS)
    values = load_keys(v, k_start, (key + lane)[:, None], k_len, g, v_row, v_head, width, e_size)
    finite = tl.abs(values.to(tl.float32)) < float("inf")
    if tl.min(tl.min(finite.to(tl.int32), 1), 0) == 0:
        values = tl.where(finite, values, 0.0).to(v.dtype.element_ty)
        sums = tl.dot(weights.to(v.dtype.element_ty), values, before, input_precision="ieee")
        for i in range(0, KEYS):
            own = (key + i + tl.arange(0, 1))[:, None]
            value = load_keys(v, k_start, own, k_len, g, v_row, v_head, width, e_size)
            value = value.to(tl.float32)
            mine = (lane == i)[None, :]
            weight = tl.sum(tl.where(mine, weights, 0.0), 1)[:, None]
            sees = tl.sum((mine & ~hidden).to(tl.int32), 1)[:, None] > 0
            sums += tl.where(sees & ~(tl.abs(value) < float("inf")), weight * value, 0.0)
    return sums


@triton.jit
def _finish(y, log_sums, place, e_size, row_valid, sound, top, total, sums, survivor,
            WIDTH: tl.constexpr):  # fmt: skip
    """Write rows; 0 where no key was seen, NaN where the span was beyond the keys."""
    column = tl.arange(0, WIDTH)[None, :]
    blind = total == 0.0
    mean = tl.div_rn(sums, tl.where(blind, 1.0, total)[:, None]) * survivor
    mean = tl.where(blind[:, None], 0.0, mean)
    mean = tl.where(sound, mean, float("nan"))
    inside = row_valid[:, None] & (column < e_size)
    tl.store(y + place[:, None] * e_size + column, mean.to(y.dtype.element_ty), mask=inside)
    if log_sums is not None:
        # Of a row that sees nothing none serves but this: every exp(s - it) is 0.
        log_sum = tl.where(blind, float("inf"), top + tl.log(total))
        tl.store(log_sums + place, log_sum, mask=row_valid)


@triton.jit(do_not_specialize=_VARYING_MASK, do_not_specialize_on_alignment=_ANYWHERE)
def attend(
    q, k, v, spans, mask, slopes, seed, y, log_sums, tops, totals, parts,
    m, n, count, heads, group, d_size, e_size, splits, most_queries, most_keys,
    q_row, q_head, k_row, k_head, v_row, v_head, mask_span, mask_head, mask_query,
    scale, softcap, window, least, survivor,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, DEPTH: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SPLIT: tl.constexpr,
    SPANS: tl.constexpr, MEND: tl.constexpr,
):  # fmt: skip
    """A tile of rows beside one head of keys. With ``parts`` a program has every so many-th split
    and leaves each as it is; without it has them all.

    ``MEND``: of a tile that is there, and only if there is a NaN in it, it is made again with care
    that it is not from a value that its rows do not see. A launch of its own, since the care takes
    half as many registers more (254 instead of 168, heads of 128 in bf16, sm_80).
    """
    tile = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1).to(tl.int64)
    number, first = find(spans, count, tile, group, ROWS, SPANS)
    if number < count:
        q_start, q_len, k_start, k_len, sound = span_of(
            spans, number, m, n, most_queries, most_keys
        )
        r = first + tl.arange(0, ROWS)
        query = r // group
        valid = (r < q_len * group) & (q_start + query >= 0) & (q_start + query < m)
        i = query.to(tl.int32)[:, None]
        # Rows behind the last are of no head.
        head = tl.where(valid, g * group + r % group, heads).to(tl.int32)[:, None]
        shift = (k_len - q_len).to(tl.int32)
        at = i + shift
        last = tl.minimum((first + ROWS - 1) // group, q_len - 1).to(tl.int32)
        low, high = seen_by(
            (first // group).to(tl.int32) + shift, last + shift, k_len, window, CAUSAL, WINDOW
        )
        depth = tl.arange(0, DEPTH)
        width = tl.arange(0, WIDTH)[None, :]
        if MEND:
            own = ((q_start + query) * heads + g * group + r % group)[:, None] * e_size + width
            made = tl.load(y + own, mask=valid[:, None] & (width < e_size), other=0.0)
            made = made.to(tl.float32)
            broken = tl.max(tl.max((made != made).to(tl.int32), 1), 0)
            high = high * broken
            valid = valid & (r * 0 + broken > 0)
        q_at = (q_start + query)[:, None] * q_row + head.to(tl.int64) * q_head + depth[None, :]
        queries = tl.load(q + q_at, mask=valid[:, None] & (depth < d_size)[None, :], other=0.0)

        highest = tl.full((ROWS,), float("-inf"), tl.float32)
        all_weights = tl.zeros((ROWS,), tl.float32)
        all_values = tl.zeros((ROWS, WIDTH), tl.float32)
        begin = low // SPLIT
        step = 1
        if parts is not None:
            step = tl.num_programs(2)
            ahead = tl.maximum(begin - tl.program_id(2) + step - 1, 0) // step
            begin = tl.program_id(2) + ahead * step
        for split in range(begin, (high + SPLIT - 1) // SPLIT, step):
            top = tl.full((ROWS,), float("-inf"), tl.float32)
            total = tl.zeros((ROWS,), tl.float32)
            sums = tl.zeros((ROWS, WIDTH), tl.float32)
            start = tl.maximum(split * SPLIT, low // KEYS * KEYS)
            for key in range(start, tl.minimum(split * SPLIT + SPLIT, high), KEYS):
                j = key + tl.arange(0, KEYS)
                keys = load_keys(
                    k, k_start, j[None, :], k_len, g, k_row, k_head, depth[:, None], d_size
                )
                s = tl.dot(queries, keys, input_precision="ieee")
                s, _slope = scored(
                    s, number, heads, head, i, at, j[None, :], k_len, mask, slopes, mask_span,
                    mask_head, mask_query, scale, softcap, window, CAUSAL, WINDOW, CAPPED,
                )  # fmt: skip
                higher = tl.maximum(top, tl.max(s, 1))
                base = tl.where(higher == float("-inf"), 0.0, higher)
                factor = tl.exp(top - base)
                weights = tl.exp(s - base[:, None])
                total = total * factor + tl.sum(weights, 1)
                if seed is not None:
                    stays = left(seed, number, heads, head, i, j[None, :], least)
                    # A product, not tl.where: for AMD Triton 3.9 puts the condition of one into
                    # shared memory, which takes no bits, and gives up.
                    weights = weights * stays.to(tl.float32)
                values = load_keys(v, k_start, j[:, None], k_len, g, v_row, v_head, width, e_size)
                before = sums * factor[:, None]
                sums = tl.dot(
                    weights.to(v.dtype.element_ty), values, before, input_precision="ieee"
                )
                if MEND:
                    sums = _only_seen(
                        sums, before, weights, s == float("-inf"), v, k_start, key, k_len, g, v_row,
                        v_head, width, e_size, KEYS,
                    )  # fmt: skip
                top = higher
            if parts is None:
                highest, all_weights, all_values = _merged(
                    highest, all_weights, all_values, top, total, sums
                )
            else:
                place = ((tile * tl.num_programs(1) + g) * splits + split) * ROWS
                place = place + tl.arange(0, ROWS)
                tl.store(tops + place, top, mask=valid)
                tl.store(totals + place, total, mask=valid)
                tl.store(parts + place[:, None] * WIDTH + width, sums, mask=valid[:, None])
        if parts is None:
            place = (q_start + query) * heads + g * group + r % group
            _finish(
                y, log_sums, place, e_size, valid, sound, highest, all_weights, all_values,
                survivor, WIDTH,
            )  # fmt: skip


@triton.jit(do_not_specialize=_VARYING)
def merge(
    spans, y, log_sums, tops, totals, parts, m, n, count, heads, group, e_size, splits,
    most_queries, most_keys, window, survivor, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, SPLIT: tl.constexpr, SPANS: tl.constexpr,
):  # fmt: skip
    """A tile's rows of what :func:`attend` has left of their splits."""
    tile = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1).to(tl.int64)
    number, first = find(spans, count, tile, group, ROWS, SPANS)
    if number < count:
        q_start, q_len, _k_start, k_len, sound = span_of(
            spans, number, m, n, most_queries, most_keys
        )
        r = first + tl.arange(0, ROWS)
        query = r // group
        valid = (r < q_len * group) & (q_start + query >= 0) & (q_start + query < m)
        shift = (k_len - q_len).to(tl.int32)
        last = tl.minimum((first + ROWS - 1) // group, q_len - 1).to(tl.int32)
        low, high = seen_by(
            (first // group).to(tl.int32) + shift, last + shift, k_len, window, CAUSAL, WINDOW
        )
        width = tl.arange(0, WIDTH)[None, :]
        highest = tl.full((ROWS,), float("-inf"), tl.float32)
        all_weights = tl.zeros((ROWS,), tl.float32)
        all_values = tl.zeros((ROWS, WIDTH), tl.float32)
        for split in range(low // SPLIT, (high + SPLIT - 1) // SPLIT):
            place = ((tile * tl.num_programs(1) + g) * splits + split) * ROWS
            place = place + tl.arange(0, ROWS)
            top = tl.load(tops + place, mask=valid, other=float("-inf"))
            total = tl.load(totals + place, mask=valid, other=0.0)
            sums = tl.load(parts + place[:, None] * WIDTH + width, mask=valid[:, None], other=0.0)
            highest, all_weights, all_values = _merged(
                highest, all_weights, all_values, top, total, sums
            )
        place = (q_start + query) * heads + g * group + r % group
        _finish(
            y, log_sums, place, e_size, valid, sound, highest, all_weights, all_values, survivor,
            WIDTH,
        )  # fmt: skip
