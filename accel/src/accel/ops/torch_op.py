"""One ``torch.library`` op per implementation, made from its contract.

``accel_x.native`` of ``linear`` becomes ``accel_x::linear_native``, with schema, fake, gradient and
vmap rule, so that a compiled graph, a profile and every torch mode see by name what ran.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from accel.contracts import Contract
from accel.op_builder import Impl
from accel.ops import gradient
from accel.torch_impls.views import unviewed

Kernel = Callable[..., Any]

CORE_NAMESPACE = "accel"

# A torch op cannot be undefined. The kernel behind a name may change, as plugins come and go in
# one process (tests, notebooks); the op defined for it stays.
_kernels: dict[str, Kernel] = {}
_ops: dict[str, OpOverload] = {}
_libraries: dict[str, torch.library.Library] = {}


def torch_op(contract: Contract, impl: Impl, kernel: Kernel) -> OpOverload:
    """The op of an implementation, running ``kernel``."""
    namespace, _, kind = impl.id.rpartition(".")
    namespace = namespace or CORE_NAMESPACE
    name = f"{contract.name}_{kind}"
    qualified = f"{namespace}::{name}"
    _kernels[qualified] = kernel
    if qualified not in _ops:
        _ops[qualified] = _define(contract, namespace, name, qualified)
    return _ops[qualified]


def _define(contract: Contract, namespace: str, name: str, qualified: str) -> OpOverload:
    library = _libraries.setdefault(namespace, torch.library.Library(namespace, "FRAGMENT"))
    library.define(name + contract.schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, _run(contract, qualified), "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, _fake(contract), lib=library)
    op: OpOverload = getattr(getattr(torch.ops, namespace), name).default
    torch.library.register_autograd(
        qualified, _backward(contract), setup_context=_save(contract), lib=library
    )
    torch.library.register_vmap(qualified, _vmap(contract, op), lib=library)
    return op


def _run(contract: Contract, qualified: str) -> Kernel:
    def own(result: Tensor, args: tuple[Any, ...]) -> Tensor:
        # A torch op must not return one of its inputs, and compiled code has been promised the
        # fake's strides.
        if any(result is arg for arg in args):
            return result.clone()
        return unviewed(result.contiguous())

    def run(*args: Any) -> Any:
        # The dispatcher drops trailing arguments that equal their defaults.
        found = _kernels[qualified](*contract.bind(args))
        if contract.result_count == 1:
            return own(found, args)
        return tuple(own(result, args) for result in found)

    return run


def _fake(contract: Contract) -> Kernel:
    def fake(*args: Any, **kwargs: Any) -> Any:
        bound = contract.bind(args, kwargs)
        contract.check(*bound)
        return contract.fake(*bound)

    return fake


def _save(contract: Contract) -> Callable[[Any, tuple[Any, ...], Any], None]:
    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        gradient.save(contract, ctx, inputs, output if isinstance(output, tuple) else (output,))

    return save


def _backward(contract: Contract) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return gradient.differentiate(contract, ctx, grads, ctx.options)

    return backward


def _vmap(contract: Contract, op: OpOverload) -> Callable[..., tuple[Any, Any]]:
    """Rows are alike, so a batch of rows is more rows; anything else goes one by one."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        batched = [i for i, dim in enumerate(in_dims) if dim is not None]
        if batched == [0] and contract.rowwise:  # such an op has one result
            return op(args[0].movedim(in_dims[0], 0), *args[1:]), 0
        found = [
            op(*(a.select(in_dims[i], n) if i in batched else a for i, a in enumerate(args)))
            for n in range(info.batch_size)
        ]
        if contract.result_count == 1:
            return torch.stack(found), 0
        return tuple(map(torch.stack, zip(*found))), (0,) * contract.result_count

    return rule
