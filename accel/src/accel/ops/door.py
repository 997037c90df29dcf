"""The door: from an op's typed function to the kernel bound for these arguments.

Its cost over the kernel is bounded (2 µs, 6 µs where autograd records), so the way of plain
tensors is short: check, look up, call. Everything that watches torch operations (compilation,
functorch, dispatch modes, tensor subclasses, autocast) goes the careful way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from accel.contracts import CONTRACTS, Contract
from accel.op_builder import Request
from accel.ops import policy as _policy
from accel.ops.binding import Binding, bind
from accel.ops.policy import Policy

_PLAIN = frozenset({Tensor, torch.nn.Parameter, torch.nn.Buffer, type(None)})
_PER_SHAPE = object()

_is_compiling = torch.compiler.is_compiling
_functorch_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_autocast_active = torch._C._is_any_autocast_enabled
_grad_enabled = torch.is_grad_enabled
_any_requires_grad = torch._C._any_requires_grad

Tensors = tuple[Any, ...]
Options = tuple[Any, ...]


def door(contract: Contract) -> Callable[[Tensors, Options], Tensor]:
    """``call(tensors, options)`` for one op: its tensor arguments, then the others."""
    name, fits, check = contract.name, contract.fits, contract.check

    def call(tensors: Tensors, options: Options) -> Tensor:
        if _is_compiling():
            return _traced(contract, tensors, options)
        if (
            _functorch_active()
            or _dispatch_modes()
            or _autocast_active()
            or not _PLAIN.issuperset(map(type, tensors))
        ):
            return _careful(contract, call, tensors, options)
        try:
            well_formed = fits(*tensors)
        except AttributeError:  # None where a tensor must be
            well_formed = False
        if not well_formed:
            check(*tensors, *options)
            raise AssertionError(f"{name}: fits() refuses what check() accepts")
        try:
            x = tensors[0]
            grad = _grad_enabled() and _any_requires_grad(*tensors)
            binding = _policy.current().bound.get((name, x.device, x.dtype, grad, options))
            if binding is None or binding is _PER_SHAPE:
                binding = bound(contract, tensors, options, grad)
            if grad:
                return binding.record(options, *tensors)
            return binding.kernel(*tensors, *options)
        except Exception:
            check(*tensors, *options)  # options that cannot even be looked up
            raise

    return call


def bound(contract: Contract, tensors: Tensors, options: Options, grad: bool) -> Binding:
    """The binding for these arguments under the policy in force, made if need be."""
    contract.check(*tensors, *options)
    policy, x = _policy.current(), tensors[0]
    for_any_shape = (contract.name, x.device, x.dtype, grad, options)
    shapes = tuple(None if t is None else tuple(t.shape) for t in tensors)
    strides = tuple(None if t is None else tuple(t.stride()) for t in tensors)
    for_these_shapes = (*for_any_shape, shapes, strides)
    for key in (for_any_shape, for_these_shapes):
        found = policy.bound.get(key)
        if isinstance(found, Binding):
            return found
    request = _request(contract, x.device, x.dtype, policy, grad, options)
    binding = bind(replace(request, shapes=shapes, strides=strides), policy)
    if any(verdict.impl.reads_shapes for verdict in binding.decision.verdicts):
        policy.bound[for_any_shape] = _PER_SHAPE
        policy.bound[for_these_shapes] = binding
    else:
        policy.bound[for_any_shape] = binding
    return binding


def _request(
    contract: Contract, device: torch.device, dtype: torch.dtype, policy: Policy, grad: bool,
    options: Options,
) -> Request:  # fmt: skip
    names = list(contract.parameters)[contract.tensor_count :]
    given = {k: v for k, v in zip(names, options) if k in contract.options}
    # Where rows must be exact, what generates must be what trains: resolved as if recording.
    return Request(contract.name, device, dtype, policy.exact or grad, given)


def _careful(
    contract: Contract, call: Callable[[Tensors, Options], Tensor], tensors: Tensors,
    options: Options,
) -> Tensor:  # fmt: skip
    x = tensors[0]
    if isinstance(x, Tensor) and torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return call(_cast(contract, tensors), options)
    return _watched(contract, tensors, options)


def _watched(contract: Contract, tensors: Tensors, options: Options) -> Tensor:
    contract.check(*tensors, *options)
    grad = _grad_enabled() and _any_requires_grad(*tensors)
    binding = bound(contract, tensors, options, grad)
    if _functorch_active():
        return binding.transform(*tensors, *options)
    return binding.op(*tensors, *options)  # type: ignore[no-any-return]


def _cast(contract: Contract, tensors: Tensors) -> Tensors:
    """The contract's dtype rule under autocast; differentiable casts."""
    x = tensors[0]
    dtype = x.dtype
    if contract.autocast == "lower" and dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t for t in tensors
    )


def _traced(contract: Contract, tensors: Tensors, options: Options) -> Tensor:
    """Under torch.compile the implementation is resolved once, while tracing, from metadata."""
    x = tensors[0]
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return _traced(contract, _cast(contract, tensors), options)
    grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    namespace, name = _resolved(contract.name, x.device, x.dtype, grad, options)
    op = getattr(getattr(torch.ops, namespace), name).default
    return op(*tensors, *options)  # type: ignore[no-any-return]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _resolved(
    op: str, device: torch.device, dtype: torch.dtype, grad: bool, options: Options
) -> tuple[str, str]:
    """Namespace and name of the torch op: constants that dynamo can put into its graph."""
    policy = _policy.current()
    chosen = bind(_request(CONTRACTS[op], device, dtype, policy, grad, options), policy).op
    return chosen.namespace, chosen._opname
