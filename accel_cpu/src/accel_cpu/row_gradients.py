"""Gradients of the ops that go through rows, by this backend's kernels: one pass over the rows.

Called as the contracts' ``backward``. What a kernel computes of one row depends on that row alone;
what is summed over rows is summed in an order that follows from the size alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]
Needs = Sequence[bool]


def rms_norm(grad: Tensor, needs: Needs, x: Tensor, w: Tensor | None, eps: float) -> Gradients:
    dx, dw, _ = _of_norm(grad, x, None, None, w, "rms", eps, (*needs[:2], False))
    return dx, dw, None


def layer_norm(
    grad: Tensor, needs: Needs, x: Tensor, w: Tensor | None, b: Tensor | None, eps: float
) -> Gradients:
    return *_of_norm(grad, x, None, None, w, "layer", eps, needs[:3]), None


def add_norm(
    grads: tuple[Tensor | None, Tensor | None], needs: Needs, x: Tensor, residual: Tensor,
    w: Tensor | None, b: Tensor | None, kind: str, eps: float,
) -> Gradients:  # fmt: skip
    """The total is added again rather than kept, and its own gradient where the norm's is."""
    grad, total_grad = grads
    if grad is None:
        return NotImplemented
    asked = (needs[0] or needs[1], *needs[2:4])
    dx, dw, db = _of_norm(grad, x, residual, total_grad, w, kind, eps, asked)
    return dx if needs[0] else None, dx if needs[1] else None, dw, db, None, None


def bias_act(grad: Tensor, needs: Needs, x: Tensor, b: Tensor | None, act: str | None) -> Gradients:
    plain = act is None and needs[0]
    asked = (needs[0] and not plain, needs[1])
    dx = db = None
    if any(asked):
        dx, db = torch.ops.accel_cpu_kernels.bias_act_gradients(grad, x, b, act, asked)
    return grad if plain else dx, db, None


def dropout_add(
    grad: Tensor, needs: Needs, x: Tensor, residual: Tensor | None, b: Tensor | None,
    seed: Tensor | None, rows: Tensor | None, p: float,
) -> Gradients:  # fmt: skip
    """What was dropped is worked out again from the seed."""
    plain = p == 0 and needs[0]
    asked = (needs[0] and not plain, needs[2])
    dx = db = None
    if any(asked):
        gradients = torch.ops.accel_cpu_kernels.dropout_add_gradients
        dx, db = gradients(grad, seed, rows, p, asked)
    return grad if plain else dx, grad if needs[1] else None, db, None, None, None


def softmax(
    run: Callable[..., Tensor], x: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, tuple[Tensor, ...], Callable[..., Gradients] | None]:
    """The forward with what its gradient is made of; that of a mask is the contract's."""
    p = run(x, mask, scale)
    return p, (p,), None if mask is not None and mask.requires_grad else _of_softmax


def _of_softmax(
    grad: Tensor, needs: Needs, x: Tensor, mask: Tensor | None, scale: float, *,
    kept: Sequence[Tensor],
) -> Gradients:  # fmt: skip
    dx = torch.ops.accel_cpu_kernels.softmax_gradient(grad, kept[0], scale)
    return dx if needs[0] else None, None, None


def rotary(
    grad: Tensor, needs: Needs, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> Gradients:
    """Turned back by the same angles."""
    if needs[1] or needs[2]:
        return NotImplemented
    dx = torch.ops.accel_cpu_kernels.rotary_native(grad, cos, -sin, interleaved)
    return dx, None, None, None


def _of_norm(*args: Any) -> tuple[Tensor | None, ...]:
    return torch.ops.accel_cpu_kernels.norm_gradients(*args)  # type: ignore[no-any-return]
