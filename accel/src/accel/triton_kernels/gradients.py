"""Gradients of products, of the arguments alone.

What an activation was given is made again by the kernels, in fp32, where the contracts' widen x and
the weight first, and so leave the matrix units idle; the products are torch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from accel.contracts import LINEAR
from accel.contracts.activation import activate, slope_times
from accel.triton_kernels.linear import linear as _linear
from accel.triton_kernels.tuning import Tuning

Gradients = tuple[Tensor | None, ...]


def linear(
    tuning: Tuning, grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, b: Tensor | None,
    act: str | None, out_dtype: torch.dtype | None,
) -> Gradients:  # fmt: skip
    """Of x ``[..., K]``, w ``[N, K]`` and b; NotImplemented where the contract's does the same."""
    if act is None:
        return NotImplemented  # type: ignore[no-any-return]
    z = _linear(tuning, x, w, b, None, torch.float32)
    grad = slope_times(grad.to(z.dtype), z, act)
    return tuple(LINEAR.backward(grad, needs, x, w, b, None, None))


def gated_linear(
    tuning: Tuning, grad: Tensor, needs: tuple[bool, ...], x: Tensor, w_gate: Tensor, w_up: Tensor,
    b_gate: Tensor | None, b_up: Tensor | None, act: str, out_dtype: torch.dtype | None,
) -> Gradients:  # fmt: skip
    """Both products are computed again, in fp32, rather than kept."""
    gate = _linear(tuning, x, w_gate, b_gate, None, torch.float32)
    up = _linear(tuning, x, w_up, b_up, None, torch.float32)
    grad = grad.to(gate.dtype)
    d_up = (grad * activate(gate, act)).to(x.dtype)
    d_gate = slope_times(grad * up, gate, act).to(x.dtype)
    of_gate, of_up = (needs[0], needs[1], needs[3]), (needs[0], needs[2], needs[4])
    dx, dw_gate, db_gate, *_ = LINEAR.backward(d_gate, of_gate, x, w_gate, b_gate, None, None)
    dx_up, dw_up, db_up, *_ = LINEAR.backward(d_up, of_up, x, w_up, b_up, None, None)
    if dx is not None and dx_up is not None:
        dx = dx + dx_up
    return dx, dw_gate, dw_up, db_gate, db_up, None, None
