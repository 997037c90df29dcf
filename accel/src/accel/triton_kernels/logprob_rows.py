"""logprob's kernels: rows of logits, a segment of the vocabulary a program.

Segments are counted from the first of the vocabulary, and what a row has of each is kept until they
are merged: so logits that are made a tile at a time give the bits of those that are there at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from accel.triton_kernels.curves import tanh

# What begins where a block of rows does, which is anywhere.
_ANYWHERE = ["ids", "logprob", "entropy", "log_sum"]


@triton.jit
def _adjusted(z, scale, softcap, temperature, CAPPED: tl.constexpr):
    z = z * scale
    if CAPPED:
        z = softcap * tanh(tl.div_rn(z, softcap))
    return tl.div_rn(z, temperature)


# Of a tile's width the compiler must not know more than of all columns: it would lay out a segment,
# and so order its sum, otherwise.
@triton.jit(
    do_not_specialize=["columns", "first", "segments"], do_not_specialize_on_alignment=["ids"]
)
def fold(
    z, ids, tops, totals, moments, chosens, columns, first, segments, scale, softcap, temperature,
    CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of a row's logits z [M, columns], those from ``first`` on of all, a segment of BLOCK.

    With d a logit less the segment's largest: sums of e^d and of -d e^d, whose addends have one
    sign, so that nothing cancels; and the logit of the id, if it is there.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(z + row * columns + column, mask=inside, other=0.0).to(tl.float32)
    value = _adjusted(value, scale, softcap, temperature, CAPPED)
    value = tl.where(inside, value, float("-inf"))
    chosen = tl.sum(tl.where(column + first == tl.load(ids + row), value, 0.0))
    top = tl.max(value)
    # Where every logit is -inf any finite number serves; -inf itself would make them NaN.
    d = value - tl.where(top == float("-inf"), 0.0, top)
    p = tl.exp(d)
    at = row * segments + first // BLOCK + tl.program_id(1)
    tl.store(tops + at, top)
    tl.store(totals + at, tl.sum(p))
    tl.store(moments + at, -tl.sum(tl.where(p == 0.0, 0.0, p * d)))
    tl.store(chosens + at, chosen)


@triton.jit(do_not_specialize=["segments"], do_not_specialize_on_alignment=_ANYWHERE)
def merge(
    ids, tops, totals, moments, chosens, logprob, entropy, log_sum, width, segments,
    BLOCK: tl.constexpr, SEGMENTS: tl.constexpr,
):  # fmt: skip
    """A row's results of what :func:`fold` has of its segments."""
    row = tl.program_id(0).to(tl.int64)
    segment = tl.arange(0, SEGMENTS)
    inside = segment < segments
    at = row * segments + segment
    top = tl.load(tops + at, mask=inside, other=float("-inf"))
    total = tl.load(totals + at, mask=inside, other=0.0)
    moment = tl.load(moments + at, mask=inside, other=0.0)
    highest = tl.max(top)
    down = tl.where(highest == float("-inf"), 0.0, highest) - top
    shrink = tl.exp(-down)
    # Of nothing a sum is 0, and 0 times inf is NaN.
    moment = (moment + tl.where(total == 0.0, 0.0, down) * total) * shrink
    whole = tl.sum(total * shrink)
    log_whole = tl.log(whole)
    id = tl.load(ids + row)
    held = tl.load(chosens + at, mask=inside, other=0.0)
    chosen = tl.sum(tl.where(segment == id // BLOCK, held, 0.0))
    # An id out of range has NaN, where a host would have raised.
    chosen = tl.where((id >= 0) & (id < width), chosen, float("nan"))
    tl.store(logprob + row, chosen - highest - log_whole)
    tl.store(entropy + row, log_whole + tl.div_rn(tl.sum(moment), whole))
    tl.store(log_sum + row, highest + log_whole)


@triton.jit(do_not_specialize=["rows", "each"])
def spread(
    z, ids, entropy, log_sum, of_logprob, of_entropy, dz, sums, rows, each, columns, first, scale,
    softcap, temperature, CAPPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of logits z [M, columns], those from ``first`` on of all, of ``each`` rows; and
    their share of its sum over the rows.

    With log-probabilities l and p = exp(l): g (1 at the id - p) and -g p (l + entropy).
    """
    part = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    total = tl.zeros((BLOCK,), tl.float32)
    begin = part * each
    for row in range(begin, tl.minimum(begin + each, rows)):
        at = tl.cast(row, tl.int64) * columns + column
        value = tl.load(z + at, mask=inside, other=0.0).to(tl.float32)
        value = _adjusted(value, scale, softcap, temperature, CAPPED)
        log = value - tl.load(log_sum + row)
        p = tl.exp(log)
        found = tl.zeros((BLOCK,), tl.float32)
        if of_entropy is not None:
            # A probability of 0, and times that, 0, where -inf would be NaN.
            log = tl.where(log < -1e4, -1e4, log)
            found -= p * (log + tl.load(entropy + row)) * tl.load(of_entropy + row)
        if of_logprob is not None:
            g = tl.load(of_logprob + row)
            found += tl.where(column + first == tl.load(ids + row), g, 0.0) - p * g
        found = tl.div_rn(found, temperature)
        if CAPPED:
            t = value * temperature / softcap
            found = found * (1.0 - t * t)
        found = found * scale
        tl.store(dz + at, found.to(dz.dtype.element_ty), mask=inside)
        total += found
    if sums is not None:
        tl.store(sums + part * columns + column, total, mask=inside)
