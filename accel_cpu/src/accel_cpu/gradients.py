"""Gradients of products by this backend's kernels, where torch's own products are slow.

On a processor without bf16 and fp16 instructions torch multiplies those dtypes element by element
where an operand lies by columns, as it does in every gradient: of x [512, 1024] and w [4096, 1024]
dx takes 6.8 s and dw 0.6 s in bf16, here 0.05 s each, as in fp32 (one Zen 3 core, torch 2.13). In
fp32, and in bf16 beside bf16 instructions, torch's are as fast.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


def linear(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, b: Tensor | None,
    act: str | None, out_dtype: torch.dtype | None,
) -> Gradients:  # fmt: skip
    """dx = grad w, dw = grad^T x and db, for x ``[..., K]`` and w ``[N, K]``; NotImplemented where
    torch's products serve as well."""
    if act is not None or x.dtype not in _slow_in_torch():
        return NotImplemented
    return (*_of_product(grad.to(x.dtype), needs, x, w), None, None)


def tiled_linear(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, b: Tensor | None,
    partial: Tensor | None, out_dtype: torch.dtype | None,
) -> Gradients:  # fmt: skip
    """As :func:`linear`'s; a partial sum's is what comes back."""
    if x.dtype not in _slow_in_torch():
        return NotImplemented
    through = grad.to(partial.dtype) if partial is not None and needs[3] else None
    return (*_of_product(grad.to(x.dtype), needs, x, w), through, None)


def _of_product(grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor) -> Gradients:
    product = torch.ops.accel_cpu_kernels.linear_native.default
    m = math.prod(x.shape[:-1])
    rows = grad.reshape(m, grad.shape[-1])
    dx = product(rows, w.t()).view(x.shape) if needs[0] else None
    dw = product(rows.t(), x.reshape(m, x.shape[-1]).t()) if needs[1] else None
    return dx, dw, rows.sum(0) if needs[2] else None


@cache
def _slow_in_torch() -> frozenset[torch.dtype]:
    """The dtypes whose products the kernels in use have faster than torch."""
    half = {"avx2": {torch.bfloat16}, "avx512": {torch.bfloat16}, "avx512_bf16": set()}
    isa = torch.ops.accel_cpu_kernels.isa()
    return frozenset({torch.float16, *half[isa]}) if isa in half else frozenset()
