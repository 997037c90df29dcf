"""A whole transformer layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from accel.contracts import TRANSFORMER_LAYER
from accel.ops import door

_transformer_layer: Callable[..., Tensor] = door.of(TRANSFORMER_LAYER)


def transformer_layer(
    x: Tensor,
    qkv_w: Tensor,
    qkv_b: Tensor,
    out_w: Tensor,
    out_b: Tensor,
    attn_norm_w: Tensor,
    attn_norm_b: Tensor,
    up_w: Tensor,
    up_b: Tensor,
    down_w: Tensor,
    down_b: Tensor,
    norm_w: Tensor,
    norm_b: Tensor,
    mask: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    heads: int = 1,
    pre_norm: bool = True,
    causal: bool = False,
    act: str = "gelu_tanh",
    eps: float = 1e-12,
    attn_dropout: float = 0.0,
    hidden_dropout: float = 0.0,
) -> Tensor:
    """A BERT-style transformer layer of sequences of one length, kept by nothing but its arguments:
    the backward computes it again.

    With a = x + dropout(attention(norm(x))) and y = a + dropout(mlp(attn_norm(a))) where
    ``pre_norm``, else a = attn_norm(x + dropout(attention(x))) and y = norm(a + dropout(mlp(a))).

    x ``[B, S, H]``, qkv_w ``[3H, H]`` (rows of queries, keys, values, by heads), out_w ``[H, H]``,
    up_w ``[I, H]``, down_w ``[H, I]``, norms ``[H]``, biases as long as their weights. mask, added
    to the scores, ``[B or 1, heads or 1, S or 1, S]``. Dropout needs seed, int64 ``[3]``; its bits
    depend on the seed, a row's sequence and its place there. Returns ``[B, S, H]``.
    """
    return _transformer_layer(
        x, qkv_w, qkv_b, out_w, out_b, attn_norm_w, attn_norm_b, up_w, up_b, down_w, down_b,
        norm_w, norm_b, mask, seed, heads, pre_norm, causal, act, eps, attn_dropout,
        hidden_dropout,
    )  # fmt: skip
