"""The gradient of attention: probabilities again, a block of rows and keys at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


def attention(
    run: Callable[..., Tensor], *args: Any
) -> tuple[Tensor, tuple[Tensor, ...], Callable[..., Gradients] | None]:
    """The forward with what its gradient is made of, a number for each query and head beside the
    result; the gradients of a mask and of slopes are the contract's."""
    if any(t is not None and t.requires_grad for t in args[4:6]):
        return run(*args), (), None
    y, log_sums = torch.ops.accel_cpu_kernels.attention_recorded(*args)
    return y, (y, log_sums), _backward


def _backward(grad: Tensor, needs: Sequence[bool], *args: Any, kept: Sequence[Tensor]) -> Gradients:
    gradients = torch.ops.accel_cpu_kernels.attention_gradients
    return *gradients(grad, *kept, needs[:3], *args), *[None] * (len(args) - 3)
