"""attention over torch's own, and with torch's own gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.contracts.attention import reference, scale_of
from accel.contracts.attention_scores import Scoring
from accel.contracts.checks import WIDE
from accel.contracts.spans import Block, blocks, runs
from accel.torch_impls.graph import Graph
from accel.torch_impls.views import unviewed


def attention(*args: Any) -> Tensor:
    """torch's own, of spans that are alike at once; the spans are read on the host.

    torch's own has no softcap and random numbers that nothing repeats, and takes what is added to
    scores in q's dtype, too coarse for distances: those are the reference's.
    """
    return _attention(lambda _, by_torch, *operands: by_torch(*operands), *args)


def forward(
    *args: Any,
) -> tuple[Tensor, tuple[Tensor, ...], Callable[..., tuple[Tensor | None, ...]] | None]:
    """:func:`attention`, and torch's own gradient: with it forward and backward take half the time
    or a third (4 spans of 256 or one of 1024, 8 heads of 64, fp32, one core of an EPYC).

    The contract's serves mask and slopes; where torch has no fused kernel and would keep the
    probabilities; and half precision, where torch's own takes three times as long on that core.
    """
    return recorded(*args) if args[0].dtype is WIDE[args[0].dtype] else (attention(*args), (), None)


def recorded(
    *args: Any,
) -> tuple[Tensor, tuple[Tensor, ...], Callable[..., tuple[Tensor | None, ...]] | None]:
    """:func:`forward`, in half precision too."""
    q, k, v, _, mask, slopes = args[:6]
    if any(t is not None and t.requires_grad for t in (mask, slopes)):
        return attention(*args), (), None
    record = _Record(room=q.nbytes + k.nbytes + v.nbytes)
    y = _attention(record, *args)
    if not record.graphs:
        return y, (), None
    return y, (y, *record.kept), partial(_backward, record.graphs)


@dataclass
class _Record:
    """Has the graphs of the runs it computes, each with how many tensors are ``kept`` for it,
    unless these need more than ``room`` bytes."""

    room: int
    graphs: list[tuple[Block, Graph, int]] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)

    def __call__(self, run: Block, by_torch: Callable[..., Tensor], *operands: Tensor) -> Tensor:
        if self.room < 0:
            return by_torch(*operands)
        found, kept, graph = Graph.record(by_torch, *operands)
        self.room -= sum(t.nbytes for t in kept)
        self.kept += kept
        # A copy of the run, without the tensors in its cache.
        self.graphs.append((replace(run), graph, len(kept)))
        if self.room < 0:
            self.graphs.clear()
            self.kept.clear()
        return found


def _backward(
    graphs: Sequence[tuple[Block, Graph, int]], grad: Tensor, needs: Sequence[bool], q: Tensor,
    k: Tensor, v: Tensor, *others: Any, kept: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    y, rest = kept[0], iter(kept[1:])
    dq = dk = dv = None
    for run, graph, count in graphs:
        tensors = (*_operands(run, q, k, v), run.rows(y), *islice(rest, count))
        of_q, of_k, of_v = graph.gradients(run.rows(grad), needs[:3], tensors)
        dq = _sum(dq, of_q, q, run.add_rows)
        dk = _sum(dk, of_k, k, run.add_keys)
        dv = _sum(dv, of_v, v, run.add_keys)
    return dq, dk, dv, *[None] * 9


def _sum(
    total: Tensor | None, found: Tensor | None, whole: Tensor,
    add: Callable[[Tensor, Tensor], Tensor],
) -> Tensor | None:  # fmt: skip
    """A run's gradient in that of the whole."""
    if found is None:
        return None
    if total is None and found.numel() == whole.numel():
        return _flat(found)
    return add(torch.zeros_like(whole) if total is None else total, found)


def _attention(
    call: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, spans: Tensor,
    mask: Tensor | None, slopes: Tensor | None, seed: Tensor | None, causal: bool,
    scale: float | None, window: int | None, softcap: float | None, dropout: float,
) -> Tensor:  # fmt: skip
    """What is torch's own of a run is computed by ``call(run, by_torch, *operands)``."""
    y = q.new_zeros(q.shape[0], q.shape[1], v.shape[2])
    if q.is_meta and spans.is_meta:  # nothing to read, and nothing to compute
        return y
    if softcap is None and dropout == 0 and (slopes is None or q.dtype is WIDE[q.dtype]):
        scale = scale_of(q, scale)
        for run in _runs(q, k, spans, mask, slopes, causal, window):
            by_torch = partial(_by_torch, run, mask, slopes, scale)
            found = call(run, by_torch, *_operands(run, q, k, v))
            if run.count * found.shape[2] == len(q):  # all there is
                return unviewed(_flat(found))
            run.rows(y).copy_(found)
        return y
    return reference(
        q, k, v, spans, mask, slopes, seed, causal, scale, window, softcap, dropout
    )  # fmt: skip


def _runs(
    q: Tensor, k: Tensor, spans: Tensor, mask: Tensor | None, slopes: Tensor | None, causal: bool,
    window: int | None,
) -> Iterator[Block]:  # fmt: skip
    sizes = (q.shape[0], k.shape[0])
    if mask is None and slopes is None and window is None:
        return runs(spans, *sizes, causal)
    # What is added to scores may be as large as they are, of one head at least.
    added_heads = 1 if slopes is None else q.shape[1]
    return blocks(spans, *sizes, added_heads, causal, window, mask)


def _operands(run: Block, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return run.rows(q), run.keys(k), run.keys(v)


def _flat(found: Tensor) -> Tensor:
    """[b, H, m, x] as [b m, H, x]."""
    return found.transpose(1, 2).flatten(0, 1)


def _by_torch(
    run: Block, mask: Tensor | None, slopes: Tensor | None, scale: float, q: Tensor, k: Tensor,
    v: Tensor,
) -> Tensor:  # fmt: skip
    """[b, H, m, E] of a run by torch's own attention."""
    added, blind = None, None
    heads, groups = q.shape[1], k.shape[1]
    aligned = run.stop - run.start in (1, run.k_len)
    plain = mask is None and slopes is None and run.window is None
    if not plain or (run.causal and not aligned):
        scoring = Scoring.of(run, heads, mask, slopes, None, scale, None, 0.0)
        added = _added(scoring, q.dtype)
        blind = None if mask is None else scoring.blind  # without a mask a run has none
    if blind is not None and q.requires_grad:
        q = q.masked_fill(blind, 0)  # a NaN there is nothing to the keys' gradients
    y = F.scaled_dot_product_attention(
        q, k, v, added, is_causal=run.causal and added is None
        and run.stop - run.start == run.k_len, scale=scale, enable_gqa=heads != groups,
    )  # fmt: skip
    with torch.no_grad():
        # Nothing, or NaN: torch 2.13's fused kernel gives 0 to a NaN query that sees under 16 keys.
        y += (q * 0).sum(-1, keepdim=True)
    return y if blind is None else y.masked_fill_(blind, 0)


def _added(scoring: Scoring, dtype: torch.dtype) -> Tensor | None:
    """What torch's own attention is given as attn_mask."""
    if scoring.bias is None:
        return None if scoring.hidden is None else ~scoring.hidden
    bias = scoring.bias.to(dtype)
    return bias if scoring.hidden is None else bias.masked_fill(scoring.hidden, -torch.inf)
