"""attention: softmax of scaled products of queries and keys, weighting values; in fp32, rounded
once.

Sequences lie one after another in the rows of q, and of k and v. A span (q_start, q_len, k_start,
k_len) is one of them: its queries and the keys they see. Query i of a span stands at its key
i + k_len - q_len, aligned at the end: a prompt is (s, n, s, n), and the one query of a decode step
over a cache of n keys is (s, 1, c, n). The score of key j of a span is, for head h of its b-th::

    s = scale * (q_i . k_j)
    s = softcap * tanh(s / softcap)                           Gemma 2
    s = s + mask[b, h, i, j] + slopes[h] * (j - (i + k_len - q_len))

slopes are ALiBi's (Press et al. 2022). ``causal``, a query sees no key behind where it stands; with
``window`` (Beltagy et al. 2020) none that is ``window`` or more keys away; and none whose mask is
-inf. Queries of no span, and those that see no key, give 0. Queries belong to one span at most;
keys may be shared. Of the probabilities of those seen, each is dropped with probability
``dropout``, survivors are times 1/(1-dropout): by bits of the seed, the row (b*H + h) * 2**32 + i
and the column j (:mod:`accel.contracts.random`), so that padding changes nothing.

M: queries · N: keys · H: heads · G: heads of keys and values, each read by H/G of the H · B: spans

attention_scores.py     from products to probabilities, and back
attention_samples.py    inputs
spans.py                which queries see which keys, cut into blocks of them
spans_unread.py         the same where spans' values cannot be read
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from accel.contracts import checks
from accel.contracts.attention_samples import NAME, bad_inputs, samples
from accel.contracts.attention_scores import Scoring, attended, gradient
from accel.contracts.checks import WIDE
from accel.contracts.contract import Contract, Cost, Tolerance
from accel.contracts.spans import Part, blocks, ranges, readable
from accel.contracts.spans_unread import Whole
from accel.errors import OpArgumentError


def reference(
    q: Tensor,  # [M, H, D]
    k: Tensor,  # [N, G, D]
    v: Tensor,  # [N, G, E]
    spans: Tensor,  # [B, 4], int64
    mask: Tensor | None = None,  # [B|1, H|1, Q|1, K]
    slopes: Tensor | None = None,  # [H], fp32
    seed: Tensor | None = None,  # [], int64
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:  # [M, H, E]
    y = q.new_zeros((q.shape[0], q.shape[1], v.shape[2]), dtype=WIDE[q.dtype])
    for part in _parts(q, k, spans, mask, causal, window):
        scoring = Scoring.of(
            part, q.shape[1], mask, slopes, seed, scale_of(q, scale), softcap, dropout
        )
        y = part.add_rows(y, attended(*operands(part, q, k, v), scoring))
    return y.to(q.dtype)


def _parts(
    q: Tensor, k: Tensor, spans: Tensor, mask: Tensor | None, causal: bool, window: int | None
) -> Iterable[Part]:
    """Block by block where the spans can be read: less work, and a NaN among a span's values stays
    in that span, where a product with all values takes it, times 0, to every query."""
    m, heads, n = *q.shape[:2], k.shape[0]
    if readable(spans):
        return blocks(spans, m, n, heads, causal, window, mask)
    return [Whole(spans, m, n, causal, window)]


def scale_of(q: Tensor, scale: float | None) -> float:
    """``scale``; for None one over the root of D."""
    return float(max(q.shape[-1], 1)) ** -0.5 if scale is None else scale


def operands(part: Part, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What of q, k and v belongs to a part, in the dtype that is computed in; contiguous, as
    products need them more than once."""
    wide = WIDE[q.dtype]
    q, k, v = (t.to(wide).contiguous() for t in (part.rows(q), part.keys(k), part.keys(v)))
    return q, k, v


def check(
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, mask: Tensor | None, slopes: Tensor | None,
    seed: Tensor | None, causal: bool, scale: float | None, window: int | None,
    softcap: float | None, dropout: float,
) -> None:  # fmt: skip
    given = {"q": q, "k": k, "v": v, "spans": spans, "mask": mask, "slopes": slopes, "seed": seed}
    checks.refuse_nontensor(NAME, given, optional=("mask", "slopes", "seed"))
    checks.require_floats(NAME, q, {"k": k, "v": v, "mask": mask}, key="q")
    checks.require_integers(NAME, "spans", spans, like="q", other=q)
    for name, wanted, t in (("q", "M, H, D", q), ("k", "N, G, D", k), ("v", "N, G, E", v)):
        if t.dim() != 3:
            raise OpArgumentError(f"{NAME}: {name} must be [{wanted}]; found {checks.describe(t)}")
    if spans.dim() != 2 or spans.shape[1] != 4:
        raise OpArgumentError(f"{NAME}: spans must be [B, 4]; found {checks.describe(spans)}")
    if k.shape[:2] != v.shape[:2]:
        raise OpArgumentError(
            f"{NAME}: v must have k's rows and heads; found {checks.describe(v)} beside "
            f"{checks.describe(k)}"
        )
    if q.shape[2] != k.shape[2]:
        raise OpArgumentError(
            f"{NAME}: k must have q's last dimension; found {checks.describe(k)} beside "
            f"{checks.describe(q)}"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise OpArgumentError(
            f"{NAME}: k's heads must divide q's heads; found {checks.describe(k)} beside "
            f"{checks.describe(q)}"
        )
    _check_scores(q, spans, mask, slopes, window, softcap)
    checks.require_flag(NAME, "causal", causal)
    if scale is not None:
        checks.require_number(NAME, "scale", scale)
    checks.require_dropout(NAME, "dropout", dropout, seed, like="q", other=q)


def _check_scores(
    q: Tensor, spans: Tensor, mask: Tensor | None, slopes: Tensor | None, window: int | None,
    softcap: float | None,
) -> None:  # fmt: skip
    sequences, heads = spans.shape[0], q.shape[1]
    if mask is not None and not _mask_fits(mask, sequences, heads):
        raise OpArgumentError(
            f"{NAME}: mask must be [{sequences} or 1, {heads} or 1, queries or 1, keys], of "
            f"{sequences} spans and {heads} heads; found {checks.describe(mask)}"
        )
    if slopes is not None:
        checks.require_wide(NAME, "slopes", slopes, q, key="q")
        if slopes.shape != (heads,):
            raise OpArgumentError(
                f"{NAME}: slopes must be [{heads}], one a head; found {checks.describe(slopes)}"
            )
    if window is not None:
        if not isinstance(window, (int, torch.SymInt)) or isinstance(window, bool):
            raise TypeError(f"{NAME}: window must be a whole number, not {type(window).__name__}")
        if window < 1:
            raise OpArgumentError(f"{NAME}: window must be at least 1; found {window}")
    if softcap is not None:
        checks.require_number(NAME, "softcap", softcap)
        if not softcap > 0:
            raise OpArgumentError(f"{NAME}: softcap must be above 0; found {softcap}")


def _mask_fits(mask: Tensor, sequences: int, heads: int) -> bool:
    shape = mask.shape
    return len(shape) == 4 and shape[0] in (1, sequences) and shape[1] in (1, heads)


def fits(
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, mask: Tensor | None, slopes: Tensor | None,
    seed: Tensor | None,
) -> bool:  # fmt: skip
    queries, keys, values, table, dtype = q.shape, k.shape, v.shape, spans.shape, q.dtype
    if not (len(queries) == len(keys) == len(values) == 3 and len(table) == 2):
        return False
    if not (mask is None or (mask.dtype is dtype and _mask_fits(mask, table[0], queries[1]))):
        return False
    if not (slopes is None or (slopes.dtype is WIDE.get(dtype) and slopes.shape == queries[1:2])):
        return False
    if seed is not None and (seed.shape or seed.dtype is not torch.int64):
        return False
    n, groups, d = keys
    return (
        values[0] == n
        and values[1] == groups != 0
        and queries[1] % groups == 0
        and queries[2] == d
        and table[1] == 4
        and k.dtype is dtype
        and v.dtype is dtype
        and spans.dtype is torch.int64
    )


def fake(
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, mask: Tensor | None = None,
    slopes: Tensor | None = None, seed: Tensor | None = None, causal: bool = True,
    scale: float | None = None, window: int | None = None, softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    return q.new_empty((q.shape[0], q.shape[1], v.shape[2]))


def backward(
    grad: Tensor, needs: tuple[bool, ...], q: Tensor, k: Tensor, v: Tensor, spans: Tensor,
    mask: Tensor | None, slopes: Tensor | None, seed: Tensor | None, causal: bool,
    scale: float | None, window: int | None, softcap: float | None, dropout: float,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Probabilities are computed again, a part at a time, and gradients are summed in fp32."""
    heads, wide = q.shape[1], WIDE[q.dtype]
    dq, dk, dv, dmask, dslopes = (
        t.new_zeros(t.shape, dtype=wide) if need and t is not None else None
        for t, need in zip((q, k, v, mask, slopes), (*needs[:3], *needs[4:6]))
    )
    asked = (*needs[:3], dmask is not None or dslopes is not None)
    for part in _parts(q, k, spans, mask, causal, window):
        scoring = Scoring.of(part, heads, mask, slopes, seed, scale_of(q, scale), softcap, dropout)
        dy = part.rows(grad).to(wide).contiguous()
        of_q, of_k, of_v, of_scores = gradient(dy, asked, *operands(part, q, k, v), scoring)
        dq = dq if dq is None or of_q is None else part.add_rows(dq, of_q)
        dk = dk if dk is None or of_k is None else part.add_keys(dk, of_k)
        dv = dv if dv is None or of_v is None else part.add_keys(dv, of_v)
        if dmask is not None and of_scores is not None:
            dmask = part.add_values(dmask, of_scores)
        if dslopes is not None and of_scores is not None:
            dslopes = dslopes + (of_scores * part.distance).sum((0, 2, 3))
    found = (None if t is None else t.to(q.dtype) for t in (dq, dk, dv))
    dmask = None if dmask is None else dmask.to(q.dtype)
    return *found, None, dmask, dslopes, *[None] * 6


def cost(
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, mask: Tensor | None, slopes: Tensor | None,
    seed: Tensor | None, causal: bool, scale: float | None, window: int | None,
    softcap: float | None, dropout: float,
) -> Cost:  # fmt: skip
    """Of the pairs of query and key that see each other; shared keys are moved once."""
    pairs = keys = 0
    for _, q_len, _, k_len in ranges(spans, q.shape[0], k.shape[0], mask):
        keys += k_len
        for at in range(k_len - q_len, k_len):  # where its queries stand
            first = 0 if window is None else max(at - window + 1, 0)
            last = at + 1 if causal else k_len if window is None else min(at + window, k_len)
            pairs += max(last - first, 0)
    m, heads, d = q.shape
    groups, e = v.shape[1:]
    moved = m * heads * (d + e) + min(keys, k.shape[0]) * groups * (d + e)
    moved += 0 if mask is None else mask.numel()
    return Cost(bytes=moved * q.element_size(), flops=2 * pairs * heads * (d + e))


ATTENTION = Contract(
    name=NAME,
    family="TransformerBuilder",
    schema="(Tensor q, Tensor k, Tensor v, Tensor spans, Tensor? mask=None, Tensor? slopes=None,"
    " Tensor? seed=None, bool causal=True, float? scale=None, int? window=None,"
    " float? softcap=None, float dropout=0.0) -> Tensor",
    options=("window", "softcap", "dropout"),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="lower",
    reference_invariant=False,
    tolerance={
        torch.float64: Tolerance(rms=1e-14, peak=1e-13),
        # Peaks stand out of an RMS that falls with the number of keys; torch's fused kernels round
        # probabilities to half precision.
        torch.float32: Tolerance(rms=1.5e-6, peak=1e-5),
        torch.bfloat16: Tolerance(rms=3e-3, peak=4e-2),
        torch.float16: Tolerance(rms=4.5e-4, peak=5e-3),
    },
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
    keyed_by="q",
    wide=("slopes",),
    presence=("mask", "slopes"),
    sizes={"head_size": ("q", -1), "value_size": ("v", -1)},
    rowwise=False,
)
