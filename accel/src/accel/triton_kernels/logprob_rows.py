"""logprob's kernels: rows of logits, a block of the vocabulary after another.

What a row has so far are four numbers, which it may be left with anywhere between two blocks: so
logits that are made a tile at a time give the bits of those that are there all at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from accel.triton_kernels.curves import tanh


@triton.jit
def _adjusted(z, scale, softcap, temperature, CAPPED: tl.constexpr):
    z = z * scale
    if CAPPED:
        z = softcap * tanh(tl.div_rn(z, softcap))
    return tl.div_rn(z, temperature)


@triton.jit
def fold(
    z, ids, logprob, entropy, log_sum, tops, totals, moments, chosens, columns, first, scale,
    softcap, temperature, CAPPED: tl.constexpr, BEGINS: tl.constexpr, ENDS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A row's logits z [M, columns], those from ``first`` on of all, after those before.

    With d a logit less the largest so far: sums of e^d and of -d e^d, whose addends have one sign,
    so that nothing cancels.
    """
    row = tl.program_id(0).to(tl.int64)
    id = tl.load(ids + row) - first
    if BEGINS:
        top = float("-inf")
        total = 0.0
        moment = 0.0
        chosen = float("nan")  # of an id out of range, where a host would have raised
    else:
        top = tl.load(tops + row)
        total = tl.load(totals + row)
        moment = tl.load(moments + row)
        chosen = tl.load(chosens + row)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        value = tl.load(z + row * columns + column, mask=inside, other=0.0).to(tl.float32)
        value = _adjusted(value, scale, softcap, temperature, CAPPED)
        value = tl.where(inside, value, float("-inf"))
        here = tl.sum(tl.where(column == id, value, 0.0))
        chosen = tl.where((id >= start) & (id < start + BLOCK) & (id < columns), here, chosen)
        higher = tl.maximum(top, tl.max(value))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        down = base - top
        shrink = tl.exp(-down)
        d = value - base
        p = tl.exp(d)
        # Sums so far are moved to the new largest; of nothing they are 0, and 0 times inf is NaN.
        moved = tl.where(total == 0.0, 0.0, down)
        moment = (moment + moved * total) * shrink - tl.sum(tl.where(p == 0.0, 0.0, p * d))
        total = total * shrink + tl.sum(p)
        top = higher
    if ENDS:
        log_total = tl.log(total)
        tl.store(logprob + row, chosen - top - log_total)
        tl.store(entropy + row, log_total + tl.div_rn(moment, total))
        if log_sum is not None:
            tl.store(log_sum + row, top + log_total)
    else:
        tl.store(tops + row, top)
        tl.store(totals + row, total)
        tl.store(moments + row, moment)
        tl.store(chosens + row, chosen)


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
