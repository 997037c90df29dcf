"""The typed function of each op. What it means is its contract's to say, exactly.

OpArgumentError where an argument does not fit; every error says what was asked, found, possible.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from accel.contracts import (
    ATTENTION,
    EMBEDDING,
    GATED_LINEAR,
    LAYER_NORM,
    LINEAR,
    LOGPROB,
    LORA_LINEAR,
    RMS_NORM,
    ROTARY,
)
from accel.ops import door

_linear: Callable[..., Tensor] = door.of(LINEAR)
_gated_linear: Callable[..., Tensor] = door.of(GATED_LINEAR)
_lora_linear: Callable[..., Tensor] = door.of(LORA_LINEAR)
_rms_norm: Callable[..., Tensor] = door.of(RMS_NORM)
_layer_norm: Callable[..., Tensor] = door.of(LAYER_NORM)
_rotary: Callable[..., Tensor] = door.of(ROTARY)
_embedding: Callable[..., Tensor] = door.of(EMBEDDING)
_attention: Callable[..., Tensor] = door.of(ATTENTION)
_logprob: Callable[..., tuple[Tensor, Tensor]] = door.of(LOGPROB)


def linear(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    act: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``act(x @ w.T + b)``: accumulated, biased and activated in fp32, rounded once.

    x ``[..., K]``, w ``[N, K]``, b ``[N]`` of one floating point dtype on one device; returns
    ``[..., N]`` in ``out_dtype`` (default x's). ``act``: ``"relu"``, ``"gelu"`` (erf),
    ``"gelu_tanh"``, ``"silu"`` or None.
    """
    return _linear(x, w, b, act, out_dtype)


def gated_linear(
    x: Tensor,
    w_gate: Tensor,
    w_up: Tensor,
    b_gate: Tensor | None = None,
    b_up: Tensor | None = None,
    *,
    act: str = "silu",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``act(x @ w_gate.T + b_gate) * (x @ w_up.T + b_up)`` in fp32, rounded once (Shazeer 2020).

    x ``[..., K]``, weights ``[N, K]``, biases ``[N]``; returns ``[..., N]``. See :func:`linear`.
    """
    return _gated_linear(x, w_gate, w_up, b_gate, b_up, act, out_dtype)


def rms_norm(x: Tensor, w: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(mean(x²) + eps) * w`` over the last dimension, in fp32, rounded once.

    x ``[..., H]``, w ``[H]`` or None; returns x's shape and dtype (Zhang and Sennrich 2019).
    """
    return _rms_norm(x, w, eps)


def lora_linear(
    x: Tensor,
    w: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    b: Tensor | None = None,
    *,
    scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``x @ w.T + b + scale * (x @ lora_a.T) @ lora_b.T`` in fp32, rounded once (Hu et al. 2021).

    x ``[..., K]``, w ``[N, K]``, lora_a ``[R, K]``, lora_b ``[N, R]``, b ``[N]``; returns
    ``[..., N]``. See :func:`linear`.
    """
    return _lora_linear(x, w, lora_a, lora_b, b, scale, out_dtype)


def layer_norm(
    x: Tensor, w: Tensor | None = None, b: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """``(x - mean(x)) / sqrt(var(x) + eps) * w + b`` over the last dimension, in fp32, rounded
    once.

    x ``[..., H]``, w and b ``[H]`` or None; returns x's shape and dtype (Ba et al. 2016).
    """
    return _layer_norm(x, w, b, eps)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotate the first ``2r`` elements of each head by the angles of its row (Su et al. 2021).

    x ``[..., H, D]``; cos and sin fp32 ``[..., r]``, one row for all H heads. Pairs are
    ``(i, i + r)``, or ``(2i, 2i + 1)`` if ``interleaved``. Returns x's shape and dtype.
    """
    return _rotary(x, cos, sin, interleaved)


def embedding(ids: Tensor, w: Tensor) -> Tensor:
    """Row ``ids[...]`` of w for each id. ids int ``[...]``, w ``[V, H]``; returns ``[..., H]``."""
    return _embedding(ids, w)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention of sequences that lie in rows; grouped heads (Ainslie et al. 2023).

    q ``[M, H, D]``, k ``[N, G, D]``, v ``[N, G, E]``, H a multiple of G. spans int64 ``[B, 4]``:
    ``(q_start, q_len, k_start, k_len)`` of each sequence. If ``causal`` its last query sees its
    last key, the one before one key less. ``scale`` of the scores: ``D ** -0.5`` by default.
    Returns ``[M, H, E]``, 0 for queries that see nothing.
    """
    return _attention(q, k, v, spans, causal, scale)


def logprob(
    x: Tensor,
    ids: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(log-probability of each id, entropy), fp32: a token's value, wherever one is needed.

    Of the logits ``softcap·tanh((x @ w.T + b)·scale / softcap) / temperature``, which are fp32 and
    never held all at once; without w, x ``[..., V]`` is the product. x ``[..., H]``, ids int64
    ``[...]``, w ``[V, H]``, b ``[V]``; both results have the shape of ids.
    """
    return _logprob(x, ids, w, b, scale, softcap, temperature)
