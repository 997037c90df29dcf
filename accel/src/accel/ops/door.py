"""The door: from an op's typed function to the kernel bound for these arguments.

Its cost over the kernel is bounded (2 µs, 6 µs where autograd records), so the way of plain
tensors is short: check, look up, call. Everything that watches torch operations (compilation,
functorch, dispatch modes, tensor subclasses, autocast, forward mode) goes the careful way.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from accel.contracts import CONTRACTS, Contract
from accel.contracts.checks import WIDE
from accel.op_builder import Request
from accel.ops import policy as _policy
from accel.ops.binding import Binding, bind
from accel.ops.policy import Policy
from accel.ops.watching import torch_is_watched

Tensors = tuple[Any, ...]
Options = tuple[Any, ...]
Facts = tuple[int, ...]

_PLAIN = frozenset({Tensor, torch.nn.Parameter, torch.nn.Buffer})
_PLAIN_OR_NONE = _PLAIN | {type(None)}
_PER_SHAPE = object()

# Written out per op, as dataclasses write out __init__: with the arguments as names instead of
# tuples a call of linear costs 1.7 µs over the kernel instead of 2.3 (2-core EPYC).
_DOOR = """
def door({tensors}, {options}):
    if is_compiling():
        return traced(contract, ({tensors},), ({options}), ({told}), ({facts}))
    if (functorch_active() or dispatch_modes() or autocast_active()
            or forward_ad._current_level >= 0 or not ({plain})):
        return careful(contract, door, ({tensors},), ({options}))
    if not fits({tensors}):
        check({tensors}, {options})
        raise AssertionError("fits() refuses what check() accepts")
    grad = grad_enabled() and ({requires_grad})
    options = ({options})
    try:
        policy = scoped_policy() or base_policy[0]
        binding = policy.bound.get(("{name}", {key}.device, {key}.dtype, grad, options, {facts}))
        if binding is None or binding is PER_SHAPE:
            binding = bound(contract, ({tensors},), options, grad)
        if grad:
            return binding.record({tensors})
        return binding.kernel({tensors}, {options})
    except Exception:
        check({tensors}, {options})  # what fits() leaves to others: mixed devices, odd options
        raise
"""


def of(contract: Contract) -> Callable[..., Any]:
    """The door of one op: a function of all the schema's arguments, in order."""
    parameters = list(contract.parameters.values())
    names = [parameter.name for parameter in parameters]
    tensors, options = names[: contract.tensor_count], names[contract.tensor_count :]
    source = _DOOR.format(
        name=contract.name,
        key=contract.keyed_by,
        tensors=", ".join(tensors),
        options="".join(f"{name}, " for name in options),
        told="".join(f"{name if name in contract.options else None}, " for name in options),
        facts="".join(_facts(contract)),
        plain=" and ".join(map(_plain, parameters[: contract.tensor_count])),
        requires_grad=" or ".join(map(_requires_grad, parameters[: contract.tensor_count])),
    )
    scope: dict[str, Any] = {
        "contract": contract, "fits": contract.fits, "check": contract.check,
        "PLAIN": _PLAIN, "PLAIN_OR_NONE": _PLAIN_OR_NONE, "PER_SHAPE": _PER_SHAPE,
        "traced": _traced, "careful": _careful, "bound": bound,
        "scoped_policy": _policy.scoped.get, "base_policy": _policy.base,
        "is_compiling": torch.compiler.is_dynamo_compiling,  # what else traces has a mode
        "functorch_active": torch._C._are_functorch_transforms_active,
        "dispatch_modes": torch._C._len_torch_dispatch_stack,
        "autocast_active": torch._C._is_any_autocast_enabled,
        "grad_enabled": torch.is_grad_enabled, "forward_ad": forward_ad,
    }  # fmt: skip
    exec(compile(source, f"<door of {contract.name}>", "exec"), scope)
    return scope["door"]  # type: ignore[no-any-return]


def _plain(parameter: inspect.Parameter) -> str:
    return f"type({parameter.name}) in {'PLAIN_OR_NONE' if _optional(parameter) else 'PLAIN'}"


def _facts(contract: Contract) -> Iterator[str]:
    """What :meth:`Contract.facts` says, as expressions."""
    for name in contract.presence:
        yield f"{name} is not None, "
    for name, at in contract.sizes.values():
        yield f"{name}.shape[{at}], "


def _requires_grad(parameter: inspect.Parameter) -> str:
    given = f"{parameter.name}.requires_grad"
    return f"({parameter.name} is not None and {given})" if _optional(parameter) else given


def _optional(parameter: inspect.Parameter) -> bool:
    return parameter.default is not inspect.Parameter.empty


def bound(contract: Contract, tensors: Tensors, options: Options, grad: bool) -> Binding:
    """The binding for these arguments under the policy in force, made if need be."""
    contract.check(*tensors, *options)
    policy, key = _policy.current(), contract.key(tensors)
    facts = contract.facts(tensors)
    for_any_shape = (contract.name, key.device, key.dtype, grad, options, *facts)
    shapes: tuple[tuple[int, ...] | None, ...] = ()
    strides: tuple[tuple[int, ...] | None, ...] = ()
    if not any(t._has_symbolic_sizes_strides for t in tensors if t is not None):
        shapes = tuple(None if t is None else tuple(t.shape) for t in tensors)
        strides = tuple(None if t is None else tuple(t.stride()) for t in tensors)
    for_these_shapes = (*for_any_shape, shapes, strides)
    for case in (for_any_shape, for_these_shapes):
        found = policy.bound.get(case)
        if isinstance(found, Binding):
            return found
    request = _request(contract, key.device, key.dtype, policy, grad, options, facts)
    binding = bind(replace(request, shapes=shapes, strides=strides), policy, options)
    if any(verdict.impl.reads_shapes for verdict in binding.decision.verdicts):
        policy.bound[for_any_shape] = _PER_SHAPE
        policy.bound[for_these_shapes] = binding
    else:
        policy.bound[for_any_shape] = binding
    return binding


def into(
    contract: Contract, door: Callable[..., Tensor], tensors: Tensors, options: Options, out: Tensor
) -> Tensor:
    """The op's result, written to ``out``: by the kernel itself where it can, else by a copy.

    RuntimeError where autograd would have to record it.
    """
    if _records((*tensors, out)):
        raise RuntimeError(
            f"{contract.name}: a result that autograd records cannot be written to out; leave out "
            "away, or call it under torch.no_grad()"
        )
    if watched_by_torch((*tensors, out)):
        return out.copy_(door(*tensors, *options))
    key = contract.key(tensors)
    case = (contract.name, key.device, key.dtype, False, options, *contract.facts(tensors))
    found = (_policy.scoped.get() or _policy.base[0]).bound.get(case)
    if isinstance(found, Binding) and contract.fits(*tensors):
        binding = found
    else:
        binding = bound(contract, tensors, options, grad=False)
    if binding.into is None:
        return out.copy_(binding.kernel(*tensors, *options))
    binding.into(*tensors, out)
    return out


def has_own_gradient(contract: Contract, tensors: Tensors, options: Options) -> bool:
    """True if what serves these arguments makes their gradients itself; else the contract's
    formula does, with torch's operations."""
    backward = bound(contract, tensors, options, grad=True).backward
    asked_for_none = (False,) * (len(tensors) + len(options))
    return backward is not None and (
        backward(tensors[0], asked_for_none, *tensors, *options) is not NotImplemented
    )


def watched_by_torch(tensors: Tensors) -> bool:
    """True if more than a kernel's result is wanted: what sends a call the careful way."""
    return (
        torch_is_watched()
        or torch._C._is_any_autocast_enabled()
        or any(type(t) not in _PLAIN_OR_NONE for t in tensors)
    )


def _request(
    contract: Contract, device: torch.device, dtype: torch.dtype, policy: Policy, grad: bool,
    options: Options, facts: Facts,
) -> Request:  # fmt: skip
    given = contract.asked(facts, options)
    # Where rows must be exact, what generates must be what trains: resolved as if recording.
    return Request(contract.name, device, dtype, policy.exact or grad, given)


def _careful(
    contract: Contract, door: Callable[..., Any], tensors: Tensors, options: Options
) -> Any:
    key = contract.key(tensors)
    if isinstance(key, Tensor) and torch.is_autocast_enabled(key.device.type):
        with torch.autocast(key.device.type, enabled=False):
            return door(*_cast(contract, tensors), *options)
    return _watched(contract, tensors, options)


def _watched(contract: Contract, tensors: Tensors, options: Options) -> Any:
    contract.check(*tensors, *options)
    grad = _records(tensors)
    binding = bound(contract, tensors, options, grad)
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return binding.transform(*tensors, *options)
    return binding.op(*tensors, *options)


def _records(tensors: Tensors) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _cast(contract: Contract, tensors: Tensors) -> Tensors:
    """The contract's dtype rule under autocast; differentiable casts."""
    if contract.autocast == "keep":
        return tensors
    key = contract.key(tensors)
    dtype = key.dtype
    if contract.autocast == "lower" and dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(key.device.type)
    return tuple(
        t.to(WIDE[dtype] if name in contract.wide else dtype)
        if isinstance(t, Tensor) and t.is_floating_point()
        else t
        for name, t in zip(contract.parameters, tensors)
    )


def _traced(
    contract: Contract, tensors: Tensors, options: Options, told: Options, facts: Facts
) -> Any:
    """Under torch.compile the implementation is resolved once, while tracing, from metadata.

    ``told`` are the options without those that no implementation may refuse by: a number among
    them may be a symbol here. Those that one may refuse by are made constants.
    """
    key = contract.key(tensors)
    if torch.is_autocast_enabled(key.device.type):
        with torch.autocast(key.device.type, enabled=False):
            return _traced(contract, _cast(contract, tensors), options, told, facts)
    grad = _records(tensors)
    known = tuple(map(_constant, told))
    facts = tuple(map(_constant, facts))
    namespace, name = _resolved(contract.name, key.device, key.dtype, grad, known, facts)
    op = getattr(getattr(torch.ops, namespace), name).default
    return op(*tensors, *options)


def _constant(option: Any) -> Any:
    """A number that dynamo has as a symbol becomes its value where Python must know it."""
    if type(option) is int:
        return operator.index(option)
    return option.__float__() if type(option) is float else option


def _resolved(
    op: str, device: torch.device, dtype: torch.dtype, grad: bool, options: Options,
    facts: Facts,
) -> tuple[str, str]:  # fmt: skip
    """Namespace and name of the torch op: constants that dynamo can put into its graph."""
    policy = _policy.current()
    request = _request(CONTRACTS[op], device, dtype, policy, grad, options, facts)
    chosen = bind(request, policy, options).op
    return chosen.namespace, chosen._opname


# What torch.compiler.assume_constant_result sets. The decorator imports dynamo: two seconds.
_resolved._dynamo_marked_constant = True  # type: ignore[attr-defined]
