"""Every op beside what one writes for it in plain torch, as data for eager.py.

Both sides are given the same tensors. Where the op promises more than the plain text holds, the
case's note says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from eager_inputs import Case, Draw, Size
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from accel import ops
from accel.contracts.quantized_linear import quantize

ROUNDS_ONCE = "bf16: in fp32, rounded once"
AGAIN = f"its product is not kept but computed again; {ROUNDS_ONCE}"
P = 0.1


def cases(size: Size, dtype: torch.dtype) -> Iterator[Case]:
    torch.manual_seed(0)
    draw = Draw(size, dtype)
    yield from elementwise(draw)
    yield from norms(draw)
    yield from products(draw)
    yield from quantised_and_grouped(draw)
    yield from tiled(draw)
    yield from values(draw)
    yield from rotary(draw)
    yield from attention(draw)
    yield from layer(draw)


def elementwise(draw: Draw) -> Iterator[Case]:
    x, b = draw.x(), draw.vector()
    for act, plain in (("gelu", F.gelu), ("silu", F.silu)):
        yield Case(
            "bias_act", lambda x, b, act=act: ops.bias_act(x, b, act=act),
            lambda x, b, plain=plain: plain(x + b), (x, b), act, ROUNDS_ONCE,
        )  # fmt: skip

    seed = torch.tensor(3)
    yield Case(
        "dropout_add", lambda x, r, b: ops.dropout_add(x, r, b, seed, p=P),
        lambda x, r, b: r + F.dropout(x + b, P), (x, draw.x(), b), f"p = {P}",
        "what is dropped follows from a seed and the row",
    )  # fmt: skip
    yield Case(
        "dropout_add", lambda x, r, b: ops.dropout_add(x, r, b), lambda x, r, b: r + (x + b),
        (x, draw.x(), b), "p = 0", ROUNDS_ONCE,
    )  # fmt: skip

    blind = "a row of -inf is 0"
    yield Case("softmax", ops.softmax, lambda x: torch.softmax(x, -1), (x,), note=blind)
    yield Case(
        "softmax", lambda x, mask: ops.softmax(x, mask, scale=0.125),
        lambda x, mask: torch.softmax(x * 0.125 + mask, -1, dtype=torch.float32).to(x.dtype),
        (x, draw.x()), "mask, scale", blind, (1,),
    )  # fmt: skip


def norms(draw: Draw) -> Iterator[Case]:
    x, residual, w, b, shape = draw.x(), draw.x(), draw.vector(), draw.vector(), draw.x().shape[-1:]
    yield Case("rms_norm", ops.rms_norm, lambda x, w: F.rms_norm(x, shape, w, 1e-6), (x, w))
    yield Case(
        "layer_norm", ops.layer_norm, lambda x, w, b: F.layer_norm(x, shape, w, b), (x, w, b)
    )

    def plain(x: Tensor, residual: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, shape, w, 1e-5), total

    yield Case("add_norm", ops.add_norm, plain, (x, residual, w), "rms")

    def with_bias(x: Tensor, residual: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.layer_norm(total, shape, w, b), total

    yield Case(
        "add_norm", lambda *tensors: ops.add_norm(*tensors, kind="layer"), with_bias,
        (x, residual, w, b), "layer",
    )  # fmt: skip


def products(draw: Draw) -> Iterator[Case]:
    size = draw.size
    x, w, b = draw.few(), draw.weight(size.out, size.width), draw.vector(size.out)
    yield Case("linear", ops.linear, F.linear, (x, w, b))
    yield Case(
        "linear", lambda x, w, b: ops.linear(x, w, b, act="gelu"),
        lambda x, w, b: F.gelu(F.linear(x, w, b)), (x, w, b), "gelu", AGAIN,
    )  # fmt: skip
    yield Case(
        "gated_linear", ops.gated_linear, lambda x, g, u: F.silu(F.linear(x, g)) * F.linear(x, u),
        (x, w, draw.weight(size.out, size.width)), note=AGAIN,
    )  # fmt: skip
    lora_a, lora_b = draw.weight(16, size.width), draw.weight(size.out, 16)
    yield Case(
        "lora_linear", lambda x, w, down, up: ops.lora_linear(x, w, down, up, scale=2.0),
        lambda x, w, down, up: F.linear(x, w) + F.linear(F.linear(x, down), up) * 2.0,
        (x, w, lora_a, lora_b), "rank 16", ROUNDS_ONCE, (1,),
    )  # fmt: skip
    yield Case(
        "norm_linear", ops.norm_linear,
        lambda x, w, norm_w: F.linear(F.rms_norm(x, x.shape[-1:], norm_w, 1e-6), w),
        (x, w, draw.vector()), "rms",
    )  # fmt: skip


def quantised_and_grouped(draw: Draw) -> Iterator[Case]:
    size, x = draw.size, draw.few()
    w, scales = quantize(draw.weight(size.out, size.width))

    def plain_int8(x: Tensor, w: Tensor, scales: Tensor) -> Tensor:
        return F.linear(x, w.to(x.dtype)) * scales.squeeze(-1).to(x.dtype)

    yield Case(
        "quantized_linear", ops.quantized_linear, plain_int8, (x, w, scales), "int8", ROUNDS_ONCE,
        (1, 2),
    )  # fmt: skip

    experts = torch.stack([draw.weight(size.out, size.width) for _ in range(4)])
    ends = torch.tensor([1, 2, 2, 4]) * (size.product_rows // 4)

    def loop(x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
        found, start = [], 0
        for e, end in enumerate(ends.tolist()):
            found.append(F.linear(x[start:end], w[e]))
            start = end
        return torch.cat(found)

    yield Case("grouped_linear", ops.grouped_linear, loop, (x, experts, ends), "4 experts")


def tiled(draw: Draw) -> Iterator[Case]:
    size = draw.size
    x, w, b = draw.few(), draw.weight(size.out, size.width), draw.vector(size.out)
    yield Case(
        "tiled_linear", ops.tiled_linear, lambda x, w, b, partial: partial + F.linear(x, w, b),
        (x, w, b, draw.few(size.out)), "a later tile", "bf16: the sum rounded once",
    )  # fmt: skip

    inner, tile_rows = size.out // 2, size.product_rows // 2

    def mlp(x: Tensor, up: Tensor, down: Tensor, gate: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    def checkpointed(x: Tensor, *weights: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return torch.cat([mlp(rows, *weights) for rows in x.split(tile_rows)])
        tiles = [
            checkpoint(mlp, rows, *weights, use_reentrant=False) for rows in x.split(tile_rows)
        ]
        return torch.cat(tiles)

    yield Case(
        "tiled_mlp", lambda *tensors: ops.tiled_mlp(*tensors, tile_rows=tile_rows), checkpointed,
        (x, draw.weight(inner, size.width), draw.weight(size.width, inner),
         draw.weight(inner, size.width)),
        "2 tiles, checkpointed", ROUNDS_ONCE,
    )  # fmt: skip


def values(draw: Draw) -> Iterator[Case]:
    size = draw.size
    ids = torch.randint(size.vocabulary, (size.product_rows,))

    def value(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logs = torch.log_softmax(logits.float(), -1)
        return logs.gather(-1, ids.unsqueeze(-1)).squeeze(-1), -(logs.exp() * logs).sum(-1)

    yield Case(
        "logprob", ops.logprob, value, (draw.few(size.vocabulary), ids), "of logits",
        "with the entropy, on both sides",
    )  # fmt: skip
    hidden = size.width // 4
    yield Case(
        "logprob", ops.logprob, lambda x, ids, w: value(F.linear(x, w), ids),
        (draw.few(hidden), ids, draw.weight(size.vocabulary, hidden)), "of a head",
        "keeps no logits; bf16: logits in fp32",
    )  # fmt: skip
    yield Case(
        "embedding",
        ops.embedding,
        F.embedding,
        (ids, draw.weight(size.vocabulary, size.width)),
        note="bf16: a weight's gradient summed in fp32",
    )


def rotary(draw: Draw) -> Iterator[Case]:
    size = draw.size
    angle = torch.rand(size.rows, size.head // 2)
    cos, sin = angle.cos(), angle.sin()
    whole = [torch.cat((t, t), -1).unsqueeze(1).to(draw.dtype) for t in (cos, sin)]

    def rotated(q: Tensor) -> Tensor:
        first, second = q.chunk(2, -1)
        return q * whole[0] + torch.cat((-second, first), -1) * whole[1]

    q = draw.x(size.rows, size.heads, size.head)
    yield Case("rotary", lambda q: ops.rotary(q, cos, sin), rotated, (q,), note=ROUNDS_ONCE)


def attention(draw: Draw) -> Iterator[Case]:
    size = draw.size
    sequences, length = 2, max(size.rows // 4, 2)
    spans = torch.tensor([[i * length, length] * 2 for i in range(sequences)])
    hidden = torch.rand(length, length).gt(0.5).to(draw.dtype) * -2.0

    def fused(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        q, k, v = (t.unflatten(0, (sequences, length)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(0, 1)

    qkv = [draw.x(sequences * length, size.heads, size.head) for _ in range(3)]
    yield Case(
        "attention", lambda q, k, v: ops.attention(q, k, v, spans),
        lambda q, k, v: fused(q, k, v, is_causal=True), qkv, "causal",
    )  # fmt: skip
    yield Case(
        "attention",
        lambda q, k, v: ops.attention(q, k, v, spans, hidden[None, None], causal=False),
        lambda q, k, v: fused(q, k, v, attn_mask=hidden), qkv, "mask",
    )  # fmt: skip


def layer(draw: Draw) -> Iterator[Case]:
    size = draw.size
    hidden, inner, heads = size.width // 4, size.width, max(size.heads // 4, 1)
    batch, length = 2, size.product_rows // 2
    shapes = ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner))
    qkv, out, up, down = ((draw.weight(*shape), draw.vector(shape[0])) for shape in shapes)
    norm = draw.vector(hidden), draw.vector(hidden)

    def plain(x: Tensor, *weights: Tensor) -> Tensor:
        qkv_w, qkv_b, out_w, out_b, mlp_nw, mlp_nb, up_w, up_b, down_w, down_b, nw, nb = weights
        h = F.linear(F.layer_norm(x, nw.shape, nw, nb, 1e-12), qkv_w, qkv_b)
        q, k, v = h.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        a = x + F.linear(h, out_w, out_b)
        h = F.linear(F.layer_norm(a, mlp_nw.shape, mlp_nw, mlp_nb, 1e-12), up_w, up_b)
        return a + F.linear(F.gelu(h, approximate="tanh"), down_w, down_b)

    def checkpointed(x: Tensor, *weights: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return plain(x, *weights)
        found: Tensor = checkpoint(plain, x, *weights, use_reentrant=False)
        return found

    yield Case(
        "transformer_layer", lambda *tensors: ops.transformer_layer(*tensors, heads=heads),
        checkpointed, (draw.x(batch, length, hidden), *qkv, *out, *norm, *up, *down, *norm),
        "checkpointed",
    )  # fmt: skip
