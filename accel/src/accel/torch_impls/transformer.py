"""rotary, attention and embedding over torch's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.contracts.attention import scale_of
from accel.contracts.rotary import split
from accel.contracts.spans import ranges


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
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, causal: bool, scale: float | None
) -> Tensor:
    """torch's own, span by span; the spans are read on the host."""
    y = q.new_zeros(q.shape[0], q.shape[1], v.shape[2])
    if q.is_meta and spans.is_meta:  # nothing to read, and nothing to compute
        return y
    scale, grouped = scale_of(q, scale), q.shape[1] != k.shape[1]
    for q_start, q_len, k_start, k_len in ranges(spans, q.shape[0], k.shape[0]):
        # Queries before the first key see none, and torch's kernels differ on what that gives.
        blind = max(q_len - k_len, 0) if causal else 0
        if blind == q_len or k_len == 0:
            continue
        rows, keys = slice(q_start + blind, q_start + q_len), slice(k_start, k_start + k_len)
        seeing = q_len - blind
        mask = None
        if causal and 1 < seeing < k_len:
            mask = torch.ones(seeing, k_len, dtype=torch.bool, device=q.device)
            mask = mask.tril(k_len - seeing)
        found = F.scaled_dot_product_attention(
            _heads_first(q[rows]), _heads_first(k[keys]), _heads_first(v[keys]), mask,
            is_causal=causal and seeing == k_len, scale=scale, enable_gqa=grouped,
        )  # fmt: skip
        # Nothing, or NaN: torch 2.13's fused kernel gives 0 to a NaN query that sees under 16 keys.
        spoilt = (q[rows] * 0).sum(-1, keepdim=True)
        y[rows] = found.squeeze(0).transpose(0, 1) + spoilt
    return y


def _heads_first(t: Tensor) -> Tensor:
    """[rows, heads, ...] as a batch of one [1, heads, rows, ...]."""
    return t.transpose(0, 1).unsqueeze(0)


def embedding(ids: Tensor, w: Tensor) -> Tensor:
    # torch 2.13 looks meta ids up in a real table without a word.
    if ids.device != w.device:
        raise RuntimeError(f"ids are on {ids.device}, w is on {w.device}; move one of them")
    return F.embedding(ids, w)
