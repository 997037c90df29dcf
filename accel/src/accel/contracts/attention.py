"""attention: softmax of scaled products of queries and keys, weighting values; in fp32, rounded
once.

Sequences lie one after another in the rows of q, and of k and v. A span (q_start, q_len, k_start,
k_len) is one of them: its queries and the keys they see. With ``causal``, query i of a span sees
its key j iff j <= i + k_len - q_len, aligned at the end: a prompt is (s, n, s, n), and the one
query of a decode step over a cache of n keys is (s, 1, c, n). Queries of no span, and those that
see no key, give 0. Queries belong to one span at most; keys may be shared.

M: queries · N: keys · H: heads · G: heads of keys and values, each read by H/G of the H · B: spans
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance
from accel.contracts.spans import Span, blocks, ranges, readable, visible
from accel.errors import OpArgumentError

NAME = "attention"


def reference(
    q: Tensor,  # [M, H, D]
    k: Tensor,  # [N, G, D]
    v: Tensor,  # [N, G, E]
    spans: Tensor,  # [B, 4], int64
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:  # [M, H, E]
    if readable(spans):
        ranges(spans, q.shape[0], k.shape[0])
    mask = visible(spans, q.shape[0], k.shape[0], causal)
    wide_q, wide_k, wide_v = _operands(q, k, v, mask)
    p = _probabilities(wide_q, wide_k, mask, scale_of(q, scale))
    return torch.einsum("grmn,nge->mgre", p, wide_v).flatten(1, 2).to(q.dtype)


def scale_of(q: Tensor, scale: float | None) -> float:
    """``scale``; for None one over the root of D."""
    return float(max(q.shape[-1], 1)) ** -0.5 if scale is None else scale


def _operands(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Wide, q as [m, G, H/G, D], and 0 in rows that see or are seen by none: a NaN in a cache's
    free slots times a probability of 0 is NaN."""
    blind, unseen = ~mask.any(1), ~mask.any(0)
    return (
        _grouped(q, k.shape[1]).masked_fill(blind[:, None, None, None], 0),
        _wide(k).masked_fill(unseen[:, None, None], 0),
        _wide(v).masked_fill(unseen[:, None, None], 0),
    )


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _grouped(t: Tensor, groups: int) -> Tensor:
    """[m, H, D] wide, as [m, G, H/G, D]."""
    m, heads, size = t.shape
    return _wide(t).reshape(m, groups, heads // groups, size)


def _probabilities(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    """[G, H/G, m, n] of :func:`_operands`, 0 where nothing is seen."""
    scores = torch.einsum("mgrd,ngd->grmn", q, k) * scale
    # Not where a query sees nothing: softmax of nothing but -inf is NaN, in its gradient too.
    hidden = ~mask & mask.any(1, keepdim=True)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(~mask, 0)


def check(
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool, scale: float | None
) -> None:
    given = {"q": q, "k": k, "v": v, "spans": spans}
    checks.refuse_nontensor(NAME, given, optional=())
    checks.require_floats(NAME, q, {"k": k, "v": v}, key="q")
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
    checks.require_flag(NAME, "causal", causal)
    if scale is not None:
        checks.require_number(NAME, "scale", scale)


def fits(q: Tensor, k: Tensor, v: Tensor, spans: Tensor) -> bool:
    queries, keys, values, table, dtype = q.shape, k.shape, v.shape, spans.shape, q.dtype
    if not (len(queries) == len(keys) == len(values) == 3 and len(table) == 2):
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
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool = True, scale: float | None = None
) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[1], v.shape[2]))


def backward(
    grad: Tensor, needs: tuple[bool, ...], q: Tensor, k: Tensor, v: Tensor, spans: Tensor,
    causal: bool, scale: float | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Probabilities are computed again, a block at a time where the spans can be read, and
    gradients are summed in fp32."""
    wide, scale = torch.promote_types(q.dtype, torch.float32), scale_of(q, scale)
    if not readable(spans):
        mask = visible(spans, q.shape[0], k.shape[0], causal)
        whole = _block_gradient(grad, needs, q, k, v, mask, scale)
        return *(None if one is None else one.to(q.dtype) for one in whole), None, None, None
    sums = [t.new_zeros(t.shape, dtype=wide) if n else None for t, n in zip((q, k, v), needs)]
    for rows, keys, mask in blocks(spans, q.shape[0], k.shape[0], q.shape[1], causal):
        block = _block_gradient(grad[rows], needs, q[rows], k[keys], v[keys], mask, scale)
        for total, where, part in zip(sums, (rows, keys, keys), block):
            if total is not None and part is not None:
                total[where] += part
    return *(None if one is None else one.to(q.dtype) for one in sums), None, None, None


def _block_gradient(
    grad: Tensor, needs: tuple[bool, ...], q: Tensor, k: Tensor, v: Tensor, mask: Tensor,
    scale: float,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Wide gradients of q, k and v, whose ``mask`` says which query sees which key.

    With scores s, probabilities p and y = p v: dp = dy v^T, ds = p (dp - sum(p dp)).
    """
    dy = _grouped(grad, k.shape[1]).masked_fill(~mask.any(1)[:, None, None, None], 0)
    q, k, v = _operands(q, k, v, mask)
    p = _probabilities(q, k, mask, scale)
    dq = dk = dv = None
    if needs[0] or needs[1]:
        dp = torch.einsum("mgre,nge->grmn", dy, v)
        ds = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
        dq = torch.einsum("grmn,ngd->mgrd", ds, k).flatten(1, 2) if needs[0] else None
        dk = torch.einsum("grmn,mgrd->ngd", ds, q) if needs[1] else None
    if needs[2]:
        dv = torch.einsum("grmn,mgre->nge", p, dy)
    return dq, dk, dv


def cost(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool, scale: float | None) -> Cost:
    """Of the pairs of query and key that see each other; shared keys are moved once."""
    pairs = keys = 0
    for _, q_len, _, k_len in ranges(spans, q.shape[0], k.shape[0]):
        seeing = min(q_len, k_len) if causal else q_len
        pairs += seeing * k_len - (seeing * (seeing - 1) // 2 if causal else 0)
        keys += k_len
    m, heads, d = q.shape
    groups, e = v.shape[1:]
    moved = m * heads * (d + e) + min(keys, k.shape[0]) * groups * (d + e)
    return Cost(bytes=moved * q.element_size(), flops=2 * pairs * heads * (d + e))


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, m: int, n: int, heads: tuple[int, int], sizes: tuple[int, int],
             spans: list[Span], *, causal: bool = True, scale: float | None = None,
             layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            (h, g), (d, e) = heads, sizes
            if layout == "fused":  # slices of one projection's result
                qkv = draw.plain(f"{name}.qkv", (m, h + 2 * g, d), dtype, device)
                q, k, v = qkv.split((h, g, g), 1)
            else:
                q, k, v = (
                    draw.rows(f"{name}.{of}", shape, dtype, device, layout)
                    for of, shape in (("q", (m, h, d)), ("k", (n, g, d)), ("v", (n, g, e)))
                )
            table = torch.tensor(spans, dtype=torch.int64).reshape(-1, 4).to(device)
            if layout == "transposed":
                table = table.t().contiguous().t()
            return q, k, v, table, causal, scale

        return Sample(name, make)

    yield case("even", 16, 16, (4, 4), (32, 32), [(0, 16, 0, 16)])
    yield case("odd", 7, 7, (3, 3), (37, 37), [(0, 7, 0, 7)])
    yield case("grouped", 9, 9, (6, 2), (24, 24), [(0, 9, 0, 9)])
    yield case("one_key_head", 9, 9, (5, 1), (24, 24), [(0, 9, 0, 9)])
    yield case("packed", 23, 23, (4, 2), (16, 16), [(0, 5, 0, 5), (5, 1, 5, 1), (6, 17, 6, 17)])
    yield case("decode", 3, 90, (8, 2), (64, 64), [(0, 1, 0, 33), (1, 1, 33, 1), (2, 1, 40, 50)])
    yield case("prefill_continued", 5, 40, (4, 2), (20, 20), [(0, 5, 3, 31)])
    yield case("shared_prefix", 6, 30, (4, 2), (20, 20), [(0, 3, 0, 12), (3, 3, 0, 25)])
    yield case("two_way", 11, 19, (4, 2), (20, 20), [(0, 4, 0, 9), (4, 7, 9, 3)], causal=False)
    yield case("scaled", 9, 9, (4, 2), (20, 20), [(0, 9, 0, 9)], scale=0.7)
    yield case("sharp", 9, 9, (4, 2), (64, 64), [(0, 9, 0, 9)], scale=1.0)
    yield case("values_longer", 6, 8, (4, 2), (16, 29), [(0, 6, 0, 8)])
    yield case("values_shorter", 6, 8, (4, 2), (16, 5), [(0, 6, 0, 8)])
    yield case("between_spans", 9, 12, (4, 2), (16, 16), [(0, 2, 1, 4), (5, 3, 6, 5)])
    yield case("more_queries", 7, 4, (4, 2), (16, 16), [(1, 6, 0, 4)])
    yield case("out_of_order", 8, 8, (4, 2), (16, 16), [(5, 3, 0, 3), (0, 5, 3, 5)])
    yield case("empty_spans", 5, 6, (4, 2), (16, 16), [(0, 0, 0, 3), (0, 5, 1, 5), (5, 0, 6, 0)])
    yield case("one", 1, 1, (1, 1), (1, 1), [(0, 1, 0, 1)])
    yield case("no_spans", 4, 4, (4, 2), (16, 16), [])
    yield case("no_rows", 0, 5, (4, 2), (16, 16), [(0, 0, 0, 5)])
    yield case("no_keys", 5, 0, (4, 2), (16, 16), [(0, 5, 0, 0)])
    yield case("no_heads", 5, 5, (0, 2), (16, 16), [(0, 5, 0, 5)])
    yield case("no_sum", 5, 5, (4, 2), (0, 16), [(0, 5, 0, 5)])
    yield case("no_columns", 5, 5, (4, 2), (16, 0), [(0, 5, 0, 5)])
    yield case("many_rows", 131, 131, (2, 1), (24, 24), [(0, 131, 0, 131)])
    yield case("long_sum", 2, 1500, (2, 1), (16, 16), [(0, 2, 0, 1500)])
    for layout in (*inputs.LAYOUTS, "fused"):
        yield case(f"layout_{layout}", 9, 9, (4, 2), (20, 20), [(0, 4, 0, 4), (4, 5, 4, 5)],
                   layout=layout)  # fmt: skip


def bad_inputs() -> Iterable[BadInput]:
    def spans(dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.tensor([[0, 3, 0, 5]]).to(device)

    good = {
        "q": inputs.maker(NAME, "q", (3, 4, 8)),
        "k": inputs.maker(NAME, "k", (5, 2, 8)),
        "v": inputs.maker(NAME, "v", (5, 2, 6)),
        "spans": spans,
        "causal": True,
        "scale": None,
    }
    yield inputs.spoil(good, "query_rank", "q must be", q=lambda q: q[0])
    yield inputs.spoil(good, "batched_keys", "k must be", k=lambda k: k[None])
    yield inputs.spoil(good, "value_rank", "v must be", v=lambda v: v[:, 0])
    yield inputs.spoil(good, "value_rows", "v must have k's rows", v=lambda v: v[:4])
    yield inputs.spoil(good, "value_heads", "v must have k's rows", v=lambda v: v[:, :1])
    yield inputs.spoil(good, "sizes_differ", "k must have q's last", k=lambda k: k[..., :7])
    yield inputs.spoil(good, "heads_differ", "divide q's heads", q=lambda q: q[:, :3])
    yield inputs.spoil(good, "no_heads", "divide", k=lambda k: k[:, :0], v=lambda v: v[:, :0])
    yield inputs.spoil(good, "span_rank", "spans must be", spans=lambda spans: spans[0])
    yield inputs.spoil(good, "span_columns", "spans must be", spans=lambda spans: spans[:, :3])
    yield inputs.spoil(good, "short_spans", "spans must be", spans=lambda spans: spans.int())
    yield inputs.spoil(good, "float_spans", "spans must be", spans=lambda spans: spans.float())
    yield inputs.spoil(good, "dtype_differs", "dtype", v=lambda v: v.double())
    yield inputs.spoil(good, "integers", "must be one of", q=lambda q: q.int())
    yield inputs.spoil(good, "other_device", "device", k=lambda k: k.to("meta"))
    yield inputs.spoil(good, "spans_elsewhere", "device", spans=lambda spans: spans.to("meta"))


ATTENTION = Contract(
    name=NAME,
    family="TransformerBuilder",
    schema="(Tensor q, Tensor k, Tensor v, Tensor spans, bool causal=True, float? scale=None)"
    " -> Tensor",
    options=(),
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
    rowwise=False,
)
