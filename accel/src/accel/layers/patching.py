"""The ZeRO-3 linear in the place of torch's, for a block of code or for one model; undone whole."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel.contracts.checks import FLOATS
from accel.errors import AccelWarning
from accel.layers.zero3 import zero3_linear_wrap

_inside: ContextVar[bool] = ContextVar("accel_memory_efficient_linear", default=False)
_lock = threading.Lock()
_blocks = 0


class _Patch:
    """What lies in place of torch's linear while any block is open; outside the blocks' own
    threads and tasks it is what lay there before."""

    def __init__(self, original: Callable[..., Tensor]) -> None:
        self.original = original
        functools.update_wrapper(self, original, updated=())

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # A compiler decides by itself what is kept for the backward.
        if torch.compiler.is_compiling() or not _inside.get() or not _served(input, weight, bias):
            return self.original(input, weight, bias)
        return zero3_linear_wrap(input, weight, bias)


def _served(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Plain floating point tensors, a matrix and a bias of its rows; torch's linear takes integers,
    subclasses, a vector for a weight and a bias to be expanded too."""
    plain, tensors = (Tensor, nn.Parameter), (input, weight, bias)
    if not all(t is None or (type(t) in plain and t.dtype in FLOATS) for t in tensors):
        return False
    return weight.dim() == 2 and (bias is None or bias.shape == weight.shape[:1])


@contextmanager
def memory_efficient_linear() -> Iterator[None]:
    """In the block ``torch.nn.functional.linear`` is :func:`zero3_linear_wrap`.

    So ``nn.Linear``, and whatever else calls torch's linear by its full name, keeps no bytes of its
    weights for the backward. In this thread or task only: others pass through to what was there
    before, which is put back when the last block ends. Blocks nest. Should somebody else have
    replaced torch's linear meanwhile, theirs stays, with a warning, and what it calls of ours
    passes through. Under ``torch.compile``, and for what accel's op does not serve (integers,
    tensor subclasses, a vector for a weight), torch's own runs.
    """
    _enter()
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)
        _leave()


def _enter() -> None:
    global _blocks
    with _lock:
        if not isinstance(_current(), _Patch):
            _place(_Patch(_current()))
        _blocks += 1


def _leave() -> None:
    global _blocks
    with _lock:
        _blocks -= 1
        if _blocks:
            return
        found = _current()
        if isinstance(found, _Patch):
            _place(found.original)
            return
    name = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', found)}"
    warnings.warn(
        f"torch.nn.functional.linear was replaced by {name} inside memory_efficient_linear(), and "
        "stays replaced; what it calls of accel passes through to what was there before",
        AccelWarning,
        stacklevel=4,
    )


def _current() -> Any:
    return F.linear  # noqa: TID251 - this is what is replaced


def _place(function: Callable[..., Tensor]) -> None:
    F.linear = function  # noqa: TID251


def use_zero3_linear(
    module: nn.Module, *, skip: Callable[[str, nn.Linear], bool] | None = None
) -> Callable[[], None]:
    """Every ``nn.Linear`` in ``module`` computes by :func:`zero3_linear_wrap` until the function
    returned is called.

    ``skip(name, linear)`` opts modules out. Only those are changed whose forward is
    ``nn.Linear``'s own; classes, Parameters, names and hooks stay, and copies and pickles of the
    module compute alike. Undoing twice does nothing.
    """
    chosen = [
        linear
        for name, linear in module.named_modules()
        if _computes_as_torch(linear) and not (skip and skip(name, linear))
    ]
    placed = {linear: functools.partial(_forward, linear) for linear in chosen}
    for linear, forward in placed.items():
        linear.forward = forward

    def undo() -> None:
        while placed:
            linear, forward = placed.popitem()
            if linear.__dict__.get("forward") is forward:
                del linear.__dict__["forward"]
            else:
                warnings.warn(
                    f"the forward of {linear} was replaced after use_zero3_linear() and stays",
                    AccelWarning,
                    stacklevel=2,
                )

    return undo


def _computes_as_torch(module: nn.Module) -> bool:
    return type(module).forward is nn.Linear.forward and "forward" not in module.__dict__


def _forward(linear: nn.Linear, input: Tensor) -> Tensor:
    return zero3_linear_wrap(input, linear.weight, linear.bias)
