"""Autograd around a kernel, made from the contract's ``backward``; in eager mode from the kernel's
own, if it has one.

Two forms. Eager recording takes the cheapest autograd.Function there is; under functorch one with
``setup_context`` is needed, which costs twice as much (12 against 5 µs, torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from accel.contracts import Contract
from accel.op_builder import Kernel
from accel.ops.watching import torch_is_watched
from accel.torch_impls.views import unviewed

# torch 2.8's compiler cannot look into is_autocast_available, 2.13's can.
_ASKS_WHILE_TRACED = torch.__version__ >= "2.13"


def save(contract: Contract, ctx: Any, args: tuple[Any, ...], results: tuple[Tensor, ...]) -> None:
    """Keep the arguments for backward; tensors as themselves, so that a Parameter stays one."""
    count = contract.tensor_count
    ctx.save_for_backward(*_read(contract, args[:count], results))
    ctx.options = args[count:]
    if contract.result_count > 1:
        ctx.set_materialize_grads(False)


def _read(
    contract: Contract, tensors: tuple[Any, ...], results: tuple[Tensor, ...]
) -> tuple[Any, ...]:
    """The tensors that backward is given: in place of those it does not read, their shape and
    dtype over one element; then the results, if it reads them."""
    if contract.unread:
        tensors = tuple(
            t.new_empty(()).expand(t.shape) if name in contract.unread and t is not None else t
            for name, t in zip(contract.parameters, tensors)
        )
    return (*tensors, *results) if contract.keeps_results else tensors


def differentiate(
    contract: Contract, ctx: Any, grads: tuple[Tensor | None, ...], options: tuple[Any, ...],
    own: Callable[..., Any] | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """One gradient or None per argument: by a kernel's ``own`` where kernels may be called and it
    has one for these arguments, else by the contract's formula."""
    backward, args = _formula(contract, ctx, options)
    if own is not None and kernels_may_serve(grads):
        found = _gradients(contract, own, ctx, grads, args)
        if found is not NotImplemented:
            return found
    return _gradients(contract, backward, ctx, grads, args)


def _formula(
    contract: Contract, ctx: Any, options: tuple[Any, ...]
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The contract's gradient, and the arguments it is given."""
    saved, count = ctx.saved_tensors, contract.tensor_count
    backward = contract.backward
    if contract.keeps_results:
        backward = partial(backward, results=saved[count : count + contract.result_count])
    return backward, (*saved[:count], *options)


def _gradients(
    contract: Contract, backward: Callable[..., Any], ctx: Any, grads: tuple[Tensor | None, ...],
    args: tuple[Any, ...],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    grad = grads if contract.result_count > 1 else grads[0]
    # The dispatcher leaves out trailing arguments that equal their defaults.
    needs = (*ctx.needs_input_grad, *(False,) * contract.tensor_count)
    if not torch._C._is_any_autocast_enabled():
        return _tuple_of(backward(grad, needs, *args))
    # Backward inside an autocast block: the dtypes were settled in the forward.
    with no_autocast(contract.key(args).device.type):
        return _tuple_of(backward(grad, needs, *args))


def _tuple_of(gradients: Any) -> tuple[Tensor | None, ...]:
    return NotImplemented if gradients is NotImplemented else tuple(gradients)


def no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A block in which nothing is cast; of a device without autocast, such as meta, any is."""
    asked = _ASKS_WHILE_TRACED or not torch.compiler.is_compiling()
    if asked and not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def recorder(contract: Contract, loaded: Kernel, options: tuple[Any, ...]) -> Callable[..., Any]:
    """``record(*tensors)``: the kernel with these options, recorded by autograd.

    For plain tensors outside every functorch transform.
    """
    if loaded.forward is not None:
        return _own_recorder(contract, loaded.forward, options)
    kernel, own, count = loaded.run, loaded.backward, contract.tensor_count

    def forward(ctx: Any, *tensors: Any) -> Any:
        # All that save_for_backward does, less 0.15 of 6 µs for its call.
        ctx.to_save = tensors
        found = kernel(*tensors, *options)
        return unviewed(found) if found._is_view() else found

    def forward_of_some(ctx: Any, *tensors: Any) -> Any:
        found = unviewed(kernel(*tensors, *options))
        ctx.to_save = _read(contract, tensors, (found,))
        return found

    def forward_several(ctx: Any, *tensors: Any) -> Any:
        ctx.set_materialize_grads(False)
        found = tuple(map(unviewed, kernel(*tensors, *options)))
        ctx.to_save = _read(contract, tensors, found)
        return found

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return differentiate(contract, ctx, grads, options, own)[:count]

    chosen = (
        forward_several if contract.result_count > 1
        else forward_of_some if contract.unread or contract.keeps_results
        else forward
    )  # fmt: skip
    return _applied(_function(contract.name, forward=chosen, backward=backward))


def _own_recorder(
    contract: Contract, record: Callable[..., Any], options: tuple[Any, ...]
) -> Callable[..., Any]:
    """``record(*tensors)`` of a kernel with a gradient of its own, which serves where the gradient
    is of plain tensors and not recorded itself."""
    count, several = contract.tensor_count, contract.result_count > 1
    some = bool(contract.unread or contract.keeps_results)

    def forward(ctx: Any, *tensors: Any) -> Any:
        if several:
            ctx.set_materialize_grads(False)
        found, kept, ctx.own = record(*tensors, *options)
        read = _read(contract, tensors, found if several else (found,)) if some else tensors
        ctx.first_kept = len(read)
        ctx.to_save = (*read, *kept) if kept else read  # see recorder
        return found

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.own is None or not kernels_may_serve(grads):
            return differentiate(contract, ctx, grads, options)[:count]
        saved = ctx.saved_tensors
        own = partial(ctx.own, kept=saved[ctx.first_kept :])
        return _gradients(contract, own, ctx, grads, (*saved[:count], *options))[:count]

    return _applied(_function(contract.name, forward=forward, backward=backward))


def kernels_may_serve(grads: tuple[Tensor | None, ...]) -> bool:
    """Whether kernels may be called in a backward of these: it is not recorded itself, nothing
    watches, nothing is batched."""
    if torch.is_grad_enabled() or torch_is_watched():
        return False
    batched = torch._C._functorch.is_legacy_batchedtensor  # is_grads_batched=True makes them
    return all(t is None or (type(t) is Tensor and not batched(t)) for t in grads)


def _applied(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    # Function.apply first looks for functorch transforms, which the caller has done: 4.1 instead
    # of 6.4 µs over the kernel on a 2-core EPYC.
    return super(torch.autograd.Function, function).apply  # type: ignore[misc,no-any-return]


def transformer(contract: Contract, op: Callable[..., Any]) -> Callable[..., Any]:
    """The op recorded by autograd in the form that functorch (grad, vmap of grad) and forward mode
    need.

    ops with ``torch.library.register_autograd`` have no setup_context of their own and raise there.
    """

    def forward(*args: Any) -> Any:
        return op(*args)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        results = output if isinstance(output, tuple) else (output,)
        save(contract, ctx, inputs, results)
        ctx.save_for_forward(*_read(contract, inputs[: contract.tensor_count], results))

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return differentiate(contract, ctx, grads, ctx.options)

    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        return _push_forward(contract, ctx, tangents)

    function = _function(
        contract.name, forward=forward, setup_context=setup_context, backward=backward, jvp=jvp
    )
    function.generate_vmap_rule = True
    return function.apply


def _push_forward(contract: Contract, ctx: Any, tangents: tuple[Tensor | None, ...]) -> Any:
    """The results' tangents, by the contract's formula. It is linear in what reaches the results,
    u -> u J; of that the gradient is v -> J v."""
    backward, args = _formula(contract, ctx, ctx.options)
    several = contract.result_count > 1
    needs = tuple(tangent is not None for tangent in tangents)

    def pull_back(*grads: Tensor) -> tuple[Any, ...]:
        found = backward(grads if several else grads[0], needs, *args)
        return tuple(one for one, need in zip(found, needs) if need)

    like = contract.fake(*args)
    zeros = map(torch.zeros_like, like if several else (like,))
    push_forward = torch.func.vjp(pull_back, *zeros)[1]
    found = push_forward(tuple(tangent for tangent in tangents if tangent is not None))
    return found if several else found[0]


def _function(op: str, **methods: Callable[..., Any]) -> type[torch.autograd.Function]:
    """An autograd.Function whose name in ``grad_fn`` is the op's."""
    static = {name: staticmethod(method) for name, method in methods.items()}
    return type(op, (torch.autograd.Function,), static)
