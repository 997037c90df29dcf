"""Gradients of products by this backend's kernels, where torch's own products are slow.

On a processor without bf16 and fp16 instructions torch multiplies those dtypes element by element
where an operand lies by columns, as it does in every gradient: of x [512, 1024] and w [4096, 1024]
dx takes 6.8 s and dw 0.6 s in bf16, here 0.05 s each, as in fp32 (one Zen 3 core, torch 2.13). In
fp32 beside AVX2, and in bf16 beside bf16 instructions, torch's are as fast; in fp32 beside AVX-512
forward and backward take half of torch's time (1024 rows, K=1024, N=4096, two Zen 5 cores).

An activation is gone back through in one pass over the product before it, kept in fp32: to
multiply again would be a third of the gradient's work. linear keeps 4 bytes a result beside it, as
torch's operations do in fp32 (2 in bf16), gated_linear 8, where they keep 12 (6). With it a
training step of a Llama of 0.25 B in bf16 takes 0.77 of the time (4 x 256 tokens, two Zen 5 cores).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from accel.contracts import LINEAR
from accel.contracts.grouped_linear import ranges

Gradients = tuple[Tensor | None, ...]
Recorded = tuple[Tensor, tuple[Tensor, ...], Callable[..., Gradients] | None]


def linear(run: Callable[..., Tensor], *args: Any) -> Recorded:
    """dx = grad w, dw = grad^T x and db, for x ``[..., K]`` and w ``[N, K]``. The contract's serve
    where there is no activation and torch's products are as fast."""
    x, _, _, act, _ = args
    if act is not None:
        y, z = torch.ops.accel_cpu_kernels.linear_recorded(*args)
        return y, (z,), _of_activated
    return run(*args), (), _of_plain if x.dtype in slow_in_torch() else None


def _of_plain(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, b: Tensor | None, *_: Any,
    kept: Sequence[Tensor] = (),
) -> Gradients:  # fmt: skip
    if x.dtype not in slow_in_torch():
        return LINEAR.backward(grad, needs, x, w, b, None, None)
    return (*_of_product(grad.to(x.dtype), needs, x, w), None, None)


def _of_activated(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, b: Tensor | None, act: str,
    out_dtype: torch.dtype | None, *, kept: Sequence[Tensor],
) -> Gradients:  # fmt: skip
    return _of_plain(_before(act, grad, *kept), needs, x, w, b)


def gated_linear(*args: Any) -> Recorded:
    """Both products are kept in fp32."""
    y, gate, up = torch.ops.accel_cpu_kernels.gated_linear_recorded(*args)
    return y, (gate, up), _of_gated_linear


def _of_gated_linear(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w_gate: Tensor, w_up: Tensor,
    b_gate: Tensor | None, b_up: Tensor | None, act: str, out_dtype: torch.dtype | None,
    *, kept: Sequence[Tensor],
) -> Gradients:  # fmt: skip
    d_gate, d_up = torch.ops.accel_cpu_kernels.gate_gradients(grad, *kept, act, x.dtype)
    through_gate, through_up = (needs[0], needs[1], needs[3]), (needs[0], needs[2], needs[4])
    dx, dw_gate, db_gate, *_ = _of_plain(d_gate, through_gate, x, w_gate, b_gate)
    dx_up, dw_up, db_up, *_ = _of_plain(d_up, through_up, x, w_up, b_up)
    if dx is not None:
        dx = dx + dx_up
    return dx, dw_gate, dw_up, db_gate, db_up, None, None


def tiled_linear(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, b: Tensor | None,
    partial: Tensor | None, out_dtype: torch.dtype | None,
) -> Gradients:  # fmt: skip
    """As :func:`linear`'s; a partial sum's is what comes back."""
    if x.dtype not in slow_in_torch():
        return NotImplemented
    through = grad.to(partial.dtype) if partial is not None and needs[3] else None
    return (*_of_product(grad.to(x.dtype), needs, x, w), through, None)


def norm_linear(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, norm_w: Tensor | None,
    norm_b: Tensor | None, b: Tensor | None, kind: str, eps: float, act: str | None,
    out_dtype: torch.dtype | None,
) -> Gradients:  # fmt: skip
    """The norm is computed again rather than kept."""
    kernels = torch.ops.accel_cpu_kernels
    normed = (
        kernels.rms_norm_native(x, norm_w, eps) if kind == "rms"
        else kernels.layer_norm_native(x, norm_w, norm_b, eps)
    )  # fmt: skip
    through = (needs[0], needs[2], needs[3])
    of_product = (any(through), needs[1], needs[4])
    if act is not None:
        grad = _before(act, grad, kernels.linear_native(normed, w, b, None, torch.float32))
    d_normed, dw, db, *_ = _of_plain(grad, of_product, normed, w, b)
    dx = d_norm_w = d_norm_b = None
    if d_normed is not None:
        dx, d_norm_w, d_norm_b = kernels.norm_gradients(
            d_normed, x, None, None, norm_w, kind, eps, through
        )
    return dx, dw, d_norm_w, d_norm_b, db, None, None, None, None


def grouped_linear(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, ends: Tensor, b: Tensor | None,
    act: str | None, out_dtype: torch.dtype | None,
) -> Gradients:  # fmt: skip
    """:func:`linear`'s for each expert, all of them in one call."""
    kernels = torch.ops.accel_cpu_kernels
    if act is not None:
        z = kernels.grouped_linear_native(x, w, ends, b, None, torch.float32)
        grad = _before(act, grad, z)
    grad = grad.to(x.dtype)
    dx = kernels.grouped_linear_native(grad, w.mT, ends) if needs[0] else None
    dw = kernels.grouped_weight_gradient(grad, x, ends) if needs[1] else None
    db = None
    if b is not None and needs[3]:
        db = torch.zeros_like(b)
        for e, rows in enumerate(ranges(ends, len(grad))):
            torch.sum(grad[rows], 0, out=db[e])
    return dx, dw, None, db, None, None


def _before(act: str, grad: Tensor, z: Tensor) -> Tensor:
    """The gradient of z from that of its activation, in fp32."""
    gradients = torch.ops.accel_cpu_kernels.bias_act_gradients
    dz: Tensor
    dz, _ = gradients(grad.to(z.dtype), z, None, act, (True, False))
    return dz


def _of_product(grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor) -> Gradients:
    product = torch.ops.accel_cpu_kernels.linear_native.default
    m = math.prod(x.shape[:-1])
    rows = grad.reshape(m, grad.shape[-1])
    dx = product(rows, w.t()).view(x.shape) if needs[0] else None
    dw = product(rows.t(), x.reshape(m, x.shape[-1]).t()) if needs[1] else None
    return dx, dw, rows.sum(0) if needs[2] else None


@cache
def slow_in_torch() -> frozenset[torch.dtype]:
    """The dtypes whose products the kernels in use have faster than torch."""
    slow = {
        "avx2": {torch.bfloat16},
        "avx512": {torch.float32, torch.bfloat16},
        "avx512_bf16": {torch.float32},
        "amx_bf16": {torch.float32},
    }
    isa = torch.ops.accel_cpu_kernels.isa()
    return frozenset({torch.float16, *slow[isa]}) if isa in slow else frozenset()
