"""rotary, attention and embedding over torch's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.contracts.attention import reference, scale_of
from accel.contracts.attention_scores import Scoring
from accel.contracts.checks import WIDE
from accel.contracts.rotary import split
from accel.contracts.spans import Block, blocks, runs


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    r = cos.shape[-1]
    a, b = (half.to(cos.dtype) for half in split(x, r, interleaved))
    first, second = split(y, r, interleaved)
    c, s = cos.unsqueeze(-2), sin.unsqueeze(-2)
    first.copy_(a * c - b * s)
    second.copy_(b * c + a * s)
    y[..., 2 * r :] = x[..., 2 * r :]
    return y


def attention(
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, mask: Tensor | None, slopes: Tensor | None,
    seed: Tensor | None, causal: bool, scale: float | None, window: int | None,
    softcap: float | None, dropout: float,
) -> Tensor:  # fmt: skip
    """torch's own, of spans that are alike at once; the spans are read on the host.

    torch's own has no softcap and random numbers that nothing repeats, and takes what is added to
    scores in q's dtype, too coarse for distances: those are the reference's.
    """
    y = q.new_zeros(q.shape[0], q.shape[1], v.shape[2])
    if q.is_meta and spans.is_meta:  # nothing to read, and nothing to compute
        return y
    sizes, scale = (q.shape[0], k.shape[0]), scale_of(q, scale)
    if softcap is None and dropout == 0 and (slopes is None or q.dtype is WIDE[q.dtype]):
        # What is added to scores may be as large as they are, of one head at least.
        plain = mask is None and slopes is None and window is None
        added_heads = 1 if slopes is None else q.shape[1]
        parts = (
            runs(spans, *sizes, causal)
            if plain
            else blocks(spans, *sizes, added_heads, causal, window, mask)
        )
        for run in parts:
            found = _by_torch(run, q, k, v, mask, slopes, scale)
            if run.count * found.shape[2] == len(q):  # all there is
                return found.transpose(1, 2).flatten(0, 1)
            run.rows(y).copy_(found)
        return y
    return reference(
        q, k, v, spans, mask, slopes, seed, causal, scale, window, softcap, dropout
    )  # fmt: skip


def _by_torch(
    run: Block, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, slopes: Tensor | None,
    scale: float,
) -> Tensor:  # fmt: skip
    """[b, H, m, E] of a run by torch's own attention."""
    added, blind = None, None
    aligned = run.stop - run.start in (1, run.k_len)
    plain = mask is None and slopes is None and run.window is None
    if not plain or (run.causal and not aligned):
        scoring = Scoring.of(run, q.shape[1], mask, slopes, None, scale, None, 0.0)
        added, blind = _added(scoring, q.dtype), scoring.blind
    rows = run.rows(q)
    y = F.scaled_dot_product_attention(
        rows, run.keys(k), run.keys(v), added, is_causal=run.causal and added is None
        and run.stop - run.start == run.k_len, scale=scale, enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    # Nothing, or NaN: torch 2.13's fused kernel gives 0 to a NaN query that sees under 16 keys.
    y += (rows * 0).sum(-1, keepdim=True)
    return y if blind is None else y.masked_fill_(blind, 0)


def _added(scoring: Scoring, dtype: torch.dtype) -> Tensor | None:
    """What torch's own attention is given as attn_mask."""
    if scoring.bias is None:
        return None if scoring.hidden is None else ~scoring.hidden
    bias = scoring.bias.to(dtype)
    return bias if scoring.hidden is None else bias.masked_fill(scoring.hidden, -torch.inf)


def embedding(ids: Tensor, w: Tensor) -> Tensor:
    # torch 2.13 looks meta ids up in a real table without a word.
    if ids.device != w.device:
        raise RuntimeError(f"ids are on {ids.device}, w is on {w.device}; move one of them")
    return F.embedding(ids, w)
