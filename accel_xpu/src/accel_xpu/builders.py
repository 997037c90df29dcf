"""Op builders for Intel GPUs: accel's Triton kernels, and torch's own as alternatives.

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
from accel_xpu import compiler
from accel_xpu.tuning import TUNING

_FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})


class _Triton(TritonBuilder):
    device_type = "xpu"

    def tuning(self) -> Tuning:
        return TUNING

    def compiler_refusals(self) -> list[Refusal]:
        refusal = compiler.triton_refusal()
        return [] if refusal is None else [refusal]


class LinearBuilder(_Triton, TritonLinearBuilder):
    """``accel_xpu.triton`` sums every output in one order, whatever the shape;
    ``accel_xpu.onednn`` is torch's, which chooses its kernel by the shape."""

    impls = (
        *triton_impls("accel_xpu", "LinearBuilder"),
        Impl("linear", "accel_xpu.onednn", _FLOATS, priority=50),
    )
    beside: ClassVar = {"accel_xpu.onednn": blas}


class TransformerBuilder(_Triton, TritonTransformerBuilder):
    """``accel_xpu.triton`` takes a query's keys in one order, counted from its span's first;
    ``accel_xpu.sdpa`` is torch's attention, which chooses its kernel by the shape."""

    impls = (
        *triton_impls("accel_xpu", "TransformerBuilder"),
        Impl("attention", "accel_xpu.sdpa", _FLOATS, priority=50),
    )
    beside: ClassVar = {"accel_xpu.sdpa": sdpa}


class TilingBuilder(_Triton, TritonTilingBuilder):
    """``accel_xpu.triton`` for what has a kernel."""

    impls = triton_impls("accel_xpu", "TilingBuilder")
