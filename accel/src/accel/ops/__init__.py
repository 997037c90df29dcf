"""Ops: one typed function per contract, the layers' only door to kernels.

functions/      the typed functions
orders.py       what a user wants, read from text     policy.py      what is in force here
catalog.py      every implementation there is         resolution.py  which one serves, and why
binding.py      loading and wrapping it               door.py        from a call to the kernel
torch_op.py     its torch.library op                  gradient.py    autograd around it
"""

from __future__ import annotations

from collections import Counter
from types import NoneType
from typing import Any

import torch

from accel import registry as _registry
from accel import selection as _selection
from accel.contracts.checks import require_flag
from accel.op_builder import Request
from accel.ops import functions
from accel.ops import policy as _policy
from accel.ops.functions import *  # noqa: F403
from accel.ops.policy import use
from accel.ops.resolution import Decision, contract_of, decide

__all__ = [*functions.__all__, "explain", "fallbacks", "use"]


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
    ``options`` are the op's own, such as ``act="silu"``; of tensors that implementations may refuse
    whether they are there, ``mask=True``; and sizes that they may, ``head_size=64``, which are read
    from ``shapes`` where these are given. What is not said of sizes nobody refuses. Print the
    result, or ``to_dict()`` it.
    """
    contract = contract_of(op)
    if device is None:
        device = _selection.get_accelerator().device()
    known = (*contract.options, *contract.presence, *contract.sizes)
    unknown = set(options) - set(known)
    if unknown:
        raise TypeError(f"{op} has the options {known}, not {sorted(unknown)}")
    policy = _policy.current()
    assert policy.registry is not None
    given = {k: options.get(k, contract.parameters[k].default) for k in contract.options}
    for name in contract.presence:
        given[name] = options.get(name, False)
        require_flag(op, name, given[name])
    told = dict(zip(contract.parameters, shapes))
    for name, (tensor, at) in contract.sizes.items():
        shape = told.get(tensor)
        given[name] = options.get(name, shape[at] if shape else None)
        if not isinstance(given[name], (int, NoneType)) or isinstance(given[name], bool):
            raise TypeError(f"{op}: {name} must be a whole number, not {given[name]!r}")
    request = Request(op, torch.device(device), dtype, policy.exact or grad, given, shapes)
    return decide(request, policy, policy.registry.load_failures)


def fallbacks() -> Counter[tuple[str, str]]:
    """How often a fallback served, by (op, implementation), since the registry was made."""
    return Counter(_registry.registry().fallbacks)
