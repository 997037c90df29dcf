"""The transformer layer beside BERT's as torch and transformers have them, and each compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from accel import layers
from accel.bench.contest import COMPILED, LIBRARY, PLAIN, SERVES
from accel.bench.layers import Entry, LayerCase, like, of_module
from accel.bench.sizes import Draw, Size

DROPOUTS = (0.0, 0.1)
LAYERS = 12  # of the model, for what new weights are drawn from


def transformer_layer(s: Size) -> Iterator[LayerCase]:
    hidden, length = s.width * 3 // 4, min(s.rows, 128)
    batch, heads = s.rows // length, hidden // s.head
    tokens = batch * length
    products = tokens * (8 * hidden * hidden + 4 * hidden * 4 * hidden)
    flops = 3 * (products + 4 * tokens * length * hidden)
    for dropout in DROPOUTS:

        def enter(draw: Draw, dropout: float = dropout) -> Entry:
            x = draw.x(batch, length, hidden).requires_grad_()
            config = layers.TransformerLayerConfig(
                hidden_size=hidden, heads=heads, num_hidden_layers=LAYERS, act="gelu",
                attn_dropout_ratio=dropout, hidden_dropout_ratio=dropout, pre_layer_norm=False,
            )  # fmt: skip
            ours = layers.TransformerLayer(config, device=draw.device, dtype=draw.dtype).train()
            torchs = _of_torch(ours, dropout)
            bert = partial(_of_transformers, ours, dropout)
            entrants = (
                ("TransformerLayer", SERVES, lambda: of_module(ours, x)),
                ("nn.TransformerEncoderLayer", PLAIN, lambda: of_module(torchs, x)),
                ("compiled", COMPILED, lambda: _compiled(torchs, x)),
                ("transformers' BertLayer", LIBRARY, lambda: of_module(bert(), x)),
                ("BertLayer, compiled", COMPILED, lambda: _compiled(bert(), x)),
            )
            return Entry(entrants, None if dropout else like(torchs, x))

        yield LayerCase(
            "TransformerLayer", s, f"{batch}x{length}x{hidden}, {heads} heads",
            "nn.TransformerEncoderLayer", enter, "transformer_layer", f"dropout {dropout:g}",
            flops=flops,
        )  # fmt: skip


def _compiled(module: nn.Module, x: Tensor) -> tuple[Callable[[], Any], Sequence[Tensor]]:
    return partial(torch.compile(module, dynamic=False), x), [x, *module.parameters()]


@torch.no_grad()
def _of_torch(layer: layers.TransformerLayer, dropout: float) -> nn.TransformerEncoderLayer:
    (q, k, v, out, norm, up, down, last), biases = layer.parts()
    bq, bk, bv, *others = biases
    made: Any = nn.TransformerEncoderLayer(
        q.shape[1], layer.config.heads, up.shape[0], dropout, "gelu", layer.config.layer_norm_eps,
        batch_first=True, device=q.device, dtype=q.dtype,
    )  # fmt: skip
    attend = made.self_attn
    attend.in_proj_weight.copy_(torch.cat((q, k, v)))
    attend.in_proj_bias.copy_(torch.cat((bq, bk, bv)))
    parts = (attend.out_proj, made.norm1, made.linear1, made.linear2, made.norm2)
    for part, weight, bias in zip(parts, (out, norm, up, down, last), others):
        part.weight.copy_(weight)
        part.bias.copy_(bias)
    found: nn.TransformerEncoderLayer = made.train()
    return found


def _of_transformers(layer: layers.TransformerLayer, dropout: float) -> nn.Module:
    settings = layer.config
    config = import_module("transformers").BertConfig(
        hidden_size=settings.hidden_size, num_attention_heads=settings.heads,
        intermediate_size=settings.intermediate_size, hidden_act="gelu",
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        layer_norm_eps=settings.layer_norm_eps, attn_implementation="sdpa",
    )  # fmt: skip
    bert = import_module("transformers.models.bert.modeling_bert").BertLayer(config)
    like = next(layer.parameters())
    bert = bert.to(like.device, like.dtype).train()
    layers.to_bert(layer, bert)
    found: nn.Module = bert
    return found
