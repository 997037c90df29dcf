"""Norms, embedding, rotary, attention, and what stands between them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from accel.contracts import (
    ADD_NORM,
    ATTENTION,
    BIAS_ACT,
    DROPOUT_ADD,
    EMBEDDING,
    LAYER_NORM,
    RMS_NORM,
    ROTARY,
    SOFTMAX,
)
from accel.ops import door

_rms_norm: Callable[..., Tensor] = door.of(RMS_NORM)
_layer_norm: Callable[..., Tensor] = door.of(LAYER_NORM)
_add_norm: Callable[..., tuple[Tensor, Tensor]] = door.of(ADD_NORM)
_bias_act: Callable[..., Tensor] = door.of(BIAS_ACT)
_softmax: Callable[..., Tensor] = door.of(SOFTMAX)
_rotary: Callable[..., Tensor] = door.of(ROTARY)
_dropout_add: Callable[..., Tensor] = door.of(DROPOUT_ADD)
_embedding: Callable[..., Tensor] = door.of(EMBEDDING)
_attention: Callable[..., Tensor] = door.of(ATTENTION)


def rms_norm(x: Tensor, w: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(mean(x²) + eps) * w`` over the last dimension, in fp32, rounded once.

    x ``[..., H]``, w ``[H]`` or None; returns x's shape and dtype (Zhang and Sennrich 2019).
    """
    return _rms_norm(x, w, eps)


def layer_norm(
    x: Tensor, w: Tensor | None = None, b: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """``(x - mean(x)) / sqrt(var(x) + eps) * w + b`` over the last dimension, in fp32, rounded
    once.

    x ``[..., H]``, w and b ``[H]`` or None; returns x's shape and dtype (Ba et al. 2016).
    """
    return _layer_norm(x, w, b, eps)


def add_norm(
    x: Tensor,
    residual: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    *,
    kind: str = "rms",
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """(norm of the total, total), of the total ``x + residual`` rounded to x's dtype.

    x and residual ``[..., H]``, w and b ``[H]`` or None; both results have x's shape and dtype.
    ``kind``: ``"rms"`` (:func:`rms_norm`, which has no b) or ``"layer"`` (:func:`layer_norm`).
    """
    return _add_norm(x, residual, w, b, kind, eps)


def bias_act(x: Tensor, b: Tensor | None = None, *, act: str | None = None) -> Tensor:
    """``act(x + b)`` in fp32, rounded once.

    x ``[..., H]``, b ``[H]`` or None; returns x's shape and dtype. ``act``: one that
    :func:`linear` takes.
    """
    return _bias_act(x, b, act)


def softmax(x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
    """``softmax(x * scale + mask)`` over the last dimension, in fp32, rounded once.

    x ``[..., S]``, mask of x's dtype and of a shape that broadcasts to x's; returns x's shape and
    dtype. Where a mask hides with -inf, a row of which nothing is left is 0.
    """
    return _softmax(x, mask, scale)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotate the first ``2r`` elements of each head by the angles of its row (Su et al. 2021).

    x ``[..., H, D]``; cos and sin fp32 ``[..., r]``, one row for all H heads. Pairs are
    ``(i, i + r)``, or ``(2i, 2i + 1)`` if ``interleaved``. Returns x's shape and dtype.
    """
    return _rotary(x, cos, sin, interleaved)


def dropout_add(
    x: Tensor,
    residual: Tensor | None = None,
    b: Tensor | None = None,
    seed: Tensor | None = None,
    rows: Tensor | None = None,
    *,
    p: float = 0.0,
) -> Tensor:
    """``residual + dropout(x + b)`` in fp32, rounded once: each element is dropped with probability
    ``p``, survivors are times ``1/(1-p)`` (Srivastava et al. 2014).

    x and residual ``[..., H]``, b ``[H]``; returns x's shape and dtype. What is dropped is a
    function of ``seed``, int64 ``[]`` (needed where p > 0), of the row's number, ``rows`` int64
    ``[...]`` (by default its place), and of the column: of nothing that was drawn before, and of
    no other row.
    """
    return _dropout_add(x, residual, b, seed, rows, p)


def embedding(ids: Tensor, w: Tensor) -> Tensor:
    """Row ``ids[...]`` of w for each id. ids int ``[...]``, w ``[V, H]``; returns ``[..., H]``."""
    return _embedding(ids, w)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Tensor,
    mask: Tensor | None = None,
    slopes: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention of sequences that lie in rows; grouped heads (Ainslie et al. 2023).

    q ``[M, H, D]``, k ``[N, G, D]``, v ``[N, G, E]``, H a multiple of G. spans int64 ``[B, 4]``:
    ``(q_start, q_len, k_start, k_len)`` of each sequence. If ``causal`` its last query sees its
    last key, the one before one key less. ``scale`` of the scores: ``D ** -0.5`` by default.
    Returns ``[M, H, E]``, 0 for queries that see nothing.

    mask, of q's dtype, ``[B or 1, H or 1, queries or 1, keys]``, is added to the scores of each
    span's queries and keys, as many as it has; -inf hides. slopes fp32 ``[H]`` are times the
    distance from the query to the key, below 0 (ALiBi, Press et al. 2022). ``window``: only keys
    less than so far away are seen. ``softcap``: ``softcap * tanh(score / softcap)``, before mask
    and slopes. Each probability is dropped with probability ``dropout``, which needs ``seed``,
    int64 ``[]``: by a function of the seed, span, head, query and key, so neither of what was drawn
    before nor of padding.

    Raises IndexError for a span that is out of range of the rows or of the mask.
    """
    return _attention(q, k, v, spans, mask, slopes, seed, causal, scale, window, softcap, dropout)
