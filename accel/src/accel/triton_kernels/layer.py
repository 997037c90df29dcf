"""transformer_layer over the kernels of its pieces, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

from accel.op_builder import Kernel
from accel.torch_impls.transformer_layer import PIECES, composed

# The pieces' kernels are decorated when these are imported, as this module's would be.
from accel.triton_kernels import attention, elementwise, linear, norm  # noqa: F401
from accel.triton_kernels.builders import kernel
from accel.triton_kernels.tuning import Tuning


def transformer_layer(tuning: Tuning, *args: Any) -> Tensor:
    y: Tensor = _layer(tuning)(*args)
    return y


def transformer_layer_gradient(
    tuning: Tuning, grad: Tensor, needs: Sequence[bool], *args: Any
) -> tuple[Tensor | None, ...]:
    backward = _layer(tuning).backward
    assert backward is not None
    return backward(grad, needs, *args)


@cache
def _layer(tuning: Tuning) -> Kernel:
    return composed({op: kernel(op, tuning) for op in PIECES}, fuses_act=True)
