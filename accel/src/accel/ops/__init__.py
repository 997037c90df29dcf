"""Ops: one typed function per contract, the layers' only door to kernels.

orders.py      what a user wants, read from text     policy.py      what is in force here
catalog.py     every implementation there is         resolution.py  which one serves, and why
binding.py     loading and wrapping it               door.py        from a call to the kernel
torch_op.py    its torch.library op                  gradient.py    autograd around it
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor

from accel import registry as _registry
from accel import selection as _selection
from accel.contracts import GATED_LINEAR, LINEAR, RMS_NORM
from accel.op_builder import Request
from accel.ops import door
from accel.ops import policy as _policy
from accel.ops.policy import use
from accel.ops.resolution import Decision, contract_of, decide

__all__ = ["explain", "fallbacks", "gated_linear", "linear", "rms_norm", "use"]

_linear = door.of(LINEAR)
_gated_linear = door.of(GATED_LINEAR)
_rms_norm = door.of(RMS_NORM)


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
    ``"gelu_tanh"``, ``"silu"`` or None. OpArgumentError if an argument does not fit.
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


def rms_norm(x: Tensor, w: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(mean(x²) + eps) * w`` over the last dimension, in fp32, rounded once.

    x ``[..., H]``, w ``[H]`` or None; returns x's shape and dtype (Zhang and Sennrich 2019).
    """
    return _rms_norm(x, w, eps)


def explain(
    op: str,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    shapes: tuple[tuple[int, ...] | None, ...] = (),
    grad: bool = False,
    **options: Any,
) -> Decision:
    """Which implementation would serve, and why every other one would not. Loads nothing.

    ``device`` defaults to the accelerator's; ``shapes`` are those of the tensor arguments;
    ``options`` are the op's own, such as ``act="silu"``. Print the result, or ``to_dict()`` it.
    """
    contract = contract_of(op)
    if device is None:
        device = _selection.get_accelerator().device()
    unknown = set(options) - set(contract.options)
    if unknown:
        raise TypeError(f"{op} has the options {contract.options}, not {sorted(unknown)}")
    policy = _policy.current()
    assert policy.registry is not None
    given = {k: options.get(k, contract.parameters[k].default) for k in contract.options}
    request = Request(op, torch.device(device), dtype, policy.exact or grad, given, shapes)
    return decide(request, policy, policy.registry.load_failures)


def fallbacks() -> Counter[tuple[str, str]]:
    """How often a fallback served, by (op, implementation), since the registry was made."""
    return Counter(_registry.registry().fallbacks)
