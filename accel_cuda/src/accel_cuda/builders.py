"""Op builders for NVIDIA and AMD GPUs: accel's Triton kernels, and torch's own as alternatives.

**Not run on hardware.**
"""

from __future__ import annotations

from typing import ClassVar

import torch

from accel import Impl, Refusal
from accel.torch_impls import blas, sdpa
from accel.triton_kernels.builders import (
    TritonBuilder,
    TritonLinearBuilder,
    TritonTilingBuilder,
    TritonTransformerBuilder,
    triton_impls,
)
from accel.triton_kernels.tuning import Tuning
from accel_cuda import compiler, tuning

_FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})


class _Triton(TritonBuilder):
    device_type = "cuda"

    def tuning(self) -> Tuning:
        return tuning.of(compiler.architecture())

    def compiler_refusals(self) -> list[Refusal]:
        refusal = compiler.triton_refusal()
        return [] if refusal is None else [refusal]


class LinearBuilder(_Triton, TritonLinearBuilder):
    """``accel_cuda.triton`` sums every output in one order, whatever the shape;
    ``accel_cuda.cublas`` is torch's, which chooses its kernel by the shape."""

    impls = (
        *triton_impls("accel_cuda", "LinearBuilder"),
        Impl("linear", "accel_cuda.cublas", _FLOATS, priority=50),
    )
    beside: ClassVar = {"accel_cuda.cublas": blas}


class TransformerBuilder(_Triton, TritonTransformerBuilder):
    """``accel_cuda.triton`` takes a query's keys in one order, counted from its span's first;
    ``accel_cuda.sdpa`` is torch's attention, which chooses its kernel by the shape."""

    impls = (
        *triton_impls("accel_cuda", "TransformerBuilder"),
        Impl("attention", "accel_cuda.sdpa", _FLOATS, priority=50),
    )
    beside: ClassVar = {"accel_cuda.sdpa": sdpa}


class TilingBuilder(_Triton, TritonTilingBuilder):
    """``accel_cuda.triton`` for what has a kernel."""

    impls = triton_impls("accel_cuda", "TilingBuilder")
