"""Autograd around a kernel, made from the contract's ``backward``.

Two forms. Eager recording takes the cheapest autograd.Function there is; under functorch one with
``setup_context`` is needed, which costs twice as much (12 against 5 µs, torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import Contract


def save(ctx: Any, tensors: tuple[Any, ...], options: tuple[Any, ...]) -> None:
    """Keep the arguments for backward; tensors as themselves, so that a Parameter stays one."""
    ctx.save_for_backward(*tensors)
    ctx.options = options


def differentiate(
    contract: Contract, ctx: Any, grad: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """One gradient or None per argument, by the contract's formula."""
    args = (*ctx.saved_tensors, *ctx.options)
    if not torch._C._is_any_autocast_enabled():
        return tuple(contract.backward(grad, needs, *args))
    # Backward inside an autocast block: the dtypes were settled in the forward.
    with torch.autocast(grad.device.type, enabled=False):
        return tuple(contract.backward(grad, needs, *args))


def recorder(contract: Contract, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``record(options, *tensors)``: the kernel recorded by autograd.

    For plain tensors outside every functorch transform.
    """

    class Record(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, options: tuple[Any, ...], *tensors: Any) -> Tensor:
            save(ctx, tensors, options)
            return kernel(*tensors, *options)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            needs = ctx.needs_input_grad[1:]
            return None, *differentiate(contract, ctx, grad, needs)[: len(needs)]

    Record.__name__ = Record.__qualname__ = f"{contract.name}_recorded"
    # Function.apply first looks for functorch transforms, which the caller has done: 4.1 instead
    # of 6.4 µs over the kernel on a 2-core EPYC.
    return super(torch.autograd.Function, Record).apply


def transformer(contract: Contract, op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The op recorded by autograd in the form functorch (grad, vmap of grad) needs.

    ops with ``torch.library.register_autograd`` have no setup_context of their own and raise there.
    """
    count = contract.tensor_count

    class Transform(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: Any) -> Tensor:
            return op(*args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            save(ctx, inputs[:count], inputs[count:])

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            return differentiate(contract, ctx, grad, ctx.needs_input_grad)

    Transform.__name__ = Transform.__qualname__ = f"{contract.name}_transformed"
    return Transform.apply
