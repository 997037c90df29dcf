"""Products with a weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from accel.contracts import (
    GATED_LINEAR,
    GROUPED_LINEAR,
    LINEAR,
    LORA_LINEAR,
    NORM_LINEAR,
    QUANTIZED_LINEAR,
)
from accel.ops import door

_linear: Callable[..., Tensor] = door.of(LINEAR)
_gated_linear: Callable[..., Tensor] = door.of(GATED_LINEAR)
_lora_linear: Callable[..., Tensor] = door.of(LORA_LINEAR)
_norm_linear: Callable[..., Tensor] = door.of(NORM_LINEAR)
_quantized_linear: Callable[..., Tensor] = door.of(QUANTIZED_LINEAR)
_grouped_linear: Callable[..., Tensor] = door.of(GROUPED_LINEAR)


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


def norm_linear(
    x: Tensor,
    w: Tensor,
    norm_w: Tensor | None = None,
    norm_b: Tensor | None = None,
    b: Tensor | None = None,
    *,
    kind: str = "rms",
    eps: float = 1e-6,
    act: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``act(norm(x) @ w.T + b)``: the norm before a product, in fp32.

    x ``[..., K]``, w ``[N, K]``, norm_w ``[K]``, b ``[N]``; ``kind`` is ``"rms"`` or ``"layer"``,
    of which norm_b ``[K]`` is. Returns ``[..., N]``. See :func:`linear`, ``rms_norm`` and
    ``layer_norm``.
    """
    return _norm_linear(x, w, norm_w, norm_b, b, kind, eps, act, out_dtype)


def quantized_linear(
    x: Tensor,
    w: Tensor,
    scales: Tensor,
    b: Tensor | None = None,
    *,
    bits: int = 8,
    act: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``act(x @ dequantize(w, scales, bits).T + b)`` in fp32, rounded once; weight-only.

    x ``[..., K]``, b ``[N]``; w int8 ``[N, K]``, or of ``bits=4`` uint8 ``[N, K/2]``; scales
    ``[N, G]`` in fp32 (fp64 beside fp64), one for each of G groups of columns. w and scales come
    from :func:`accel.contracts.quantized_linear.quantize`. Returns ``[..., N]``; x, scales and b
    have gradients. See :func:`linear`.
    """
    return _quantized_linear(x, w, scales, b, bits, act, out_dtype)


def grouped_linear(
    x: Tensor,
    w: Tensor,
    ends: Tensor,
    b: Tensor | None = None,
    *,
    act: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """``act(x @ w[e].T + b[e])`` of rows sorted by expert, in fp32, rounded once.

    x ``[M, K]``, w ``[E, N, K]``, b ``[E, N]``, ends int64 ``[E]``: expert e has the rows
    ``ends[e - 1]`` up to ``ends[e]``, the first one those from 0; rows past the last end give 0.
    Returns ``[M, N]``. IndexError where ends that can be read are out of order or beyond M. See
    :func:`linear`.
    """
    return _grouped_linear(x, w, ends, b, act, out_dtype)
