"""Cases of ops that look along a sequence, beside what one writes for them in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from accel.bench.case import Arguments, Case
from accel.bench.sizes import Draw, Size

EPS = 1e-12


def attention(s: Size) -> Iterator[Case]:
    """New tokens see what came before them: a cache, or each other."""
    queries, keys = s.rows // s.sequences, s.keys
    causal = queries == keys
    groups = max(s.heads // 4, 1)

    def make(draw: Draw, kv_heads: int) -> Arguments:
        spans = draw.whole([[i * queries, queries, i * keys, keys] for i in range(s.sequences)])
        q = draw.x(s.rows, s.heads, s.head)
        k, v = (draw.x(s.sequences * keys, kv_heads, s.head) for _ in range(2))
        return q, k, v, spans, *[None] * 3, True, None, None, None, 0.0

    def plain(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
        q, k, v = (t.unflatten(0, (s.sequences, -1)).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, enable_gqa=k.shape[1] < q.shape[1]
        )
        return y.transpose(1, 2).flatten(0, 1)

    for heads in dict.fromkeys((s.heads, groups)):
        shape = f"{s.sequences}x{queries} to {keys}, {s.heads} heads of {s.head}"
        yield Case(
            "attention", s, shape, lambda draw, heads=heads: make(draw, heads), plain,  # type: ignore[misc]
            "F.scaled_dot_product_attention", "" if heads == s.heads else f"{heads} of keys",
        )  # fmt: skip


def transformer_layer(s: Size) -> Iterator[Case]:
    """BERT's: a quarter less wide than the other ops, 768 with 12 heads."""
    if s.steps:
        return
    hidden = s.width * 3 // 4
    heads, inner, length = hidden // s.head, 4 * hidden, min(s.rows, 128)

    def make(draw: Draw) -> Arguments:
        shapes = ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner))
        qkv, out, up, down = ((draw.weight(*shape), draw.vector(shape[0])) for shape in shapes)
        norms = [(draw.vector(hidden), draw.vector(hidden)) for _ in range(2)]
        x = draw.x(s.rows // length, length, hidden)
        return (
            x, *qkv, *out, *norms[0], *up, *down, *norms[1],
            None, None, heads, True, False, "gelu_tanh", EPS, 0.0, 0.0,
        )  # fmt: skip

    def layer(x: Tensor, *weights: Tensor) -> Tensor:
        qkv_w, qkv_b, out_w, out_b, mlp_nw, mlp_nb, up_w, up_b, down_w, down_b, nw, nb = weights
        h = F.linear(F.layer_norm(x, nw.shape, nw, nb, EPS), qkv_w, qkv_b)
        q, k, v = h.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        a = x + F.linear(h, out_w, out_b)
        h = F.linear(F.layer_norm(a, mlp_nw.shape, mlp_nw, mlp_nb, EPS), up_w, up_b)
        return a + F.linear(F.gelu(h, approximate="tanh"), down_w, down_b)

    def plain(x: Tensor, *args: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return layer(x, *args[:12])
        found: Tensor = checkpoint(layer, x, *args[:12], use_reentrant=False)
        return found

    yield Case(
        "transformer_layer", s, f"{s.rows // length}x{length}x{hidden}, {heads} heads", make,
        plain, "F.linear, SDPA, ..., checkpointed",
    )  # fmt: skip
