"""attention's way from products to probabilities and its gradient, of b sequences at once.

q ``[b, H, m, D]``, k ``[b, G, n, D]``, v ``[b, G, n, E]`` in the dtype that is computed in; heads
first, so that torch's batched products serve: those of the H/G heads that read one head of keys lie
one after another and are one product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from accel.contracts.checks import WIDE
from accel.contracts.spans import Part


@dataclass(frozen=True)
class Scoring:
    """What becomes of the products; the tensors broadcast to ``[b, H, m, n]``.

    ``bias``    is added; -inf hides
    ``hidden``  bool: which query does not see which key, whatever the key holds
    ``blind``   bool ``[.., 1]``: queries that see none, whose result is 0. Nothing is hidden from
                them: softmax of nothing but -inf is NaN, in its gradient too
    ``kept``    bool: the probabilities that dropout leaves, times ``survivor``
    """

    scale: float
    softcap: float | None
    bias: Tensor | None
    hidden: Tensor | None
    blind: Tensor | None
    kept: Tensor | None
    survivor: float

    @classmethod
    def of(
        cls, part: Part, heads: int, mask: Tensor | None, slopes: Tensor | None,
        seed: Tensor | None, scale: float, softcap: float | None, dropout: float,
    ) -> Scoring:  # fmt: skip
        visible = part.visible
        hidden = None if visible is None else ~visible[None, None]
        blind: Tensor | None = None if hidden is None else hidden.all(-1, keepdim=True)
        bias = None if slopes is None else (slopes[:, None, None] * part.distance)[None]
        if mask is not None:
            values = part.values(mask).to(WIDE[mask.dtype])
            never = values == -torch.inf
            blind = (never if hidden is None else never | hidden).all(-1, keepdim=True)
            values = values.masked_fill(blind, 0)
            bias = values if bias is None else values + bias
        if hidden is not None and blind is not None:
            hidden = hidden & ~blind
        kept, survivor = None, 1.0
        if dropout > 0:
            assert seed is not None, "dropout needs a seed"
            kept = part.kept(seed, heads, dropout)
            survivor = 1 / (1 - dropout) if dropout < 1 else 0.0
        return cls(scale, softcap, bias, hidden, blind, kept, survivor)


def attended(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
    """``[b, H, m, E]``: values weighted by probabilities."""
    p, _ = _probabilities(_sighted(q, scoring) * scoring.scale, k, scoring)
    y = _weighted(_dropped(p, scoring), v)
    return _sighted(y if scoring.kept is None else y * scoring.survivor, scoring)


def gradient(
    dy: Tensor, needs: tuple[bool, ...], q: Tensor, k: Tensor, v: Tensor, scoring: Scoring
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Those of q, k, v and of the scores, the last one ``[b, H, m, n]``; None where ``needs`` has
    False.

    With scores s, probabilities p, what dropout leaves w of them, and y = w v: dw = dy v^T,
    dp = dw where kept, ds = p (dp - sum(p dp)).
    """
    dy, q = _sighted(dy, scoring), _sighted(q, scoring) * scoring.scale
    dy = dy if scoring.kept is None else dy * scoring.survivor
    p, slope = _probabilities(q, k, scoring)
    dq = dk = ds = None
    dv = _to_keys(_dropped(p, scoring), dy, v.shape[1]) if needs[2] else None
    if needs[0] or needs[1] or needs[3]:
        dp = _dropped(_products(dy, v), scoring)
        ds = torch._softmax_backward_data(dp, p, -1, p.dtype)
        dz = ds if slope is None else ds * slope
        dq = _weighted(dz, k) * scoring.scale if needs[0] else None
        dk = _to_keys(dz, q, k.shape[1]) if needs[1] else None
    return dq, dk, dv, ds if needs[3] else None


def _probabilities(q: Tensor, k: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor | None]:
    """``[b, H, m, n]`` of scaled queries, and the derivative of capped scores by plain ones."""
    s, slope = _products(q, k), None
    if scoring.softcap is not None:
        t = (s / scoring.softcap).tanh()
        s, slope = t * scoring.softcap, 1 - t * t
    if scoring.bias is not None:
        s = s + scoring.bias
    if scoring.hidden is not None:
        s = s.masked_fill(scoring.hidden, -torch.inf)
    return s.softmax(-1), slope


def _dropped(p: Tensor, scoring: Scoring) -> Tensor:
    return p if scoring.kept is None else p.masked_fill(~scoring.kept, 0)


def _sighted(t: Tensor, scoring: Scoring) -> Tensor:
    """0 in rows of queries that see nothing: whatever else is there, NaN times 0 is NaN."""
    return t if scoring.blind is None else t.masked_fill(scoring.blind, 0)


def _by_group(t: Tensor, groups: int) -> Tensor:
    """[b, H, m, x] as [b, G, H/G m, x]."""
    b, heads, m, x = t.shape
    return t.reshape(b, groups, heads // groups * m, x)


def _products(q: Tensor, k: Tensor) -> Tensor:
    found = _by_group(q, k.shape[1]) @ k.mT
    return found.reshape(*q.shape[:3], k.shape[2])


def _weighted(p: Tensor, v: Tensor) -> Tensor:
    found = _by_group(p, v.shape[1]) @ v
    return found.reshape(*p.shape[:3], v.shape[3])


def _to_keys(p: Tensor, t: Tensor, groups: int) -> Tensor:
    """[b, G, n, x]: what each key gets of [b, H, m, x]."""
    return _by_group(p, groups).mT @ _by_group(t, groups)
