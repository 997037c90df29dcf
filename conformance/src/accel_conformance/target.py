"""A target: one implementation of one op on one device, called as users call it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import accel
from accel import registry
from accel.contracts import Contract
from accel.op_builder import Impl, OpBuilder, Request
from accel.ops import policy
from accel.ops.door import bound
from accel.ops.resolution import decide
from accel.refusal import Refusal
from accel_conformance.case import Evidence

Args = tuple[Any, ...]
Results = tuple[Tensor, ...]


@dataclass(frozen=True)
class Target:
    """One implementation of one op on one device."""

    contract: Contract
    impl: Impl
    builder: OpBuilder
    device: torch.device

    @property
    def op(self) -> str:
        return self.contract.name

    @property
    def torch_op(self) -> str:
        """The name its torch op must have: ``accel_x.native`` of linear is
        ``accel_x::linear_native``."""
        namespace, _, kind = self.impl.id.rpartition(".")
        return f"{namespace or 'accel'}::{self.op}_{kind}"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Where the op is served by this implementation or not at all."""
        with accel.ops.use(f"{self.op}={self.impl.id}", exact=False):
            yield

    def call(self, args: Args) -> Results:
        """Results of the op's public function with the arguments of its schema."""
        tensors, options = self._split(args)
        names = list(self.contract.parameters)[len(tensors) :]
        function = getattr(accel.ops, self.op)
        return each(function(*tensors, **dict(zip(names, options))))

    def told(self, args: Args) -> str:
        """The arguments that are given, in words: ``x float32[3, 17], act 'relu'``."""
        given = [pair for pair in zip(self.contract.parameters, args) if pair[1] is not None]
        return ", ".join(f"{name} {_told(arg, self.device)}" for name, arg in given)

    def takes_out(self) -> bool:
        """Whether the public function writes its result to a place it is given."""
        return "out" in inspect.signature(getattr(accel.ops, self.op)).parameters

    def call_into(self, args: Args, out: Tensor) -> None:
        tensors, _ = self._split(args)
        getattr(accel.ops, self.op)(*tensors, out=out)

    def bound(self, args: Args, *, grad: bool = False) -> str:
        """Id of the implementation the public function is bound to for these arguments."""
        return bound(self.contract, *self._split(args), grad).impl.id

    def request(self, args: Args, *, grad: bool = False, shapes: bool = True) -> Request:
        """What the op asks of a builder for these arguments."""
        tensors, options = self._split(args)
        return Request(
            self.op,
            self.device,
            self.contract.key(tensors).dtype,
            grad,
            self.contract.asked(self.contract.facts(tensors), options),
            tuple(None if t is None else tuple(t.shape) for t in tensors) if shapes else (),
            tuple(None if t is None else tuple(t.stride()) for t in tensors) if shapes else (),
        )

    def declines(self, seen: Evidence, args: Args, *, grad: bool = False) -> bool:
        """True, and written down why, if the implementation does not serve these arguments."""
        failures = registry.registry().load_failures
        if self.impl in failures:
            return not seen.expect("loads", False, str(failures[self.impl]))
        refusals = self.refusals(args, grad=grad)
        seen.refused(refusals)
        return bool(refusals)

    def refusals(self, args: Args, *, grad: bool = False) -> Sequence[Refusal]:
        """Why the implementation does not serve these arguments; empty if it does."""
        failures = registry.registry().load_failures
        decision = decide(self.request(args, grad=grad), policy.current(), failures)
        return next(v.refusals for v in decision.verdicts if v.impl == self.impl)

    def _split(self, args: Args) -> tuple[Args, Args]:
        """(tensor arguments, options)"""
        count = self.contract.tensor_count
        return args[:count], args[count:]


class Watch(TorchDispatchMode):
    """Notes the torch ops called in its body by name. accel's ops take another way there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Args = (), kwargs: Any = None
    ) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def tensors(args: Args) -> list[Tensor]:
    return [arg for arg in args if isinstance(arg, Tensor)]


def each(result: Any) -> tuple[Any, ...]:
    """The results of an op, one or several, as a tuple."""
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def same_bits(ones: Results, others: Results) -> bool:
    """Equal dtypes, shapes and bits, result by result; NaN equals NaN."""
    return len(ones) == len(others) and all(map(_same, ones, others))


def _told(arg: Any, device: torch.device) -> str:
    if not isinstance(arg, Tensor):
        return f"{arg!r:.80}"
    strides = "" if arg.is_contiguous() else f" with strides {list(arg.stride())}"
    offset = f" at offset {arg.storage_offset()}" if arg.storage_offset() else ""
    elsewhere = f" on {arg.device}" if arg.device != device else ""
    return f"{name_of(arg.dtype)}{list(arg.shape)}{strides}{offset}{elsewhere}"


def _same(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype is other.dtype
        and one.shape == other.shape
        and torch.equal(_bytes(one), _bytes(other))
    )


def storage_bits(tensor: Tensor) -> Tensor:
    """A copy of everything in the tensor's storage, seen through it or not."""
    everything = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return everything.set_(tensor.untyped_storage()).clone()


def poison(likes: Results, value: float) -> None:
    """Leave freed memory of the results' sizes full of ``value``, so that an element which a
    kernel does not write shows."""
    [torch.full_like(like, value) for like in likes if like.numel() for _ in range(4)]


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1).contiguous()
    # Of one element any stride is contiguous, to all but view().
    return flat.as_strided(flat.shape, (1,)).view(torch.uint8)


def name_of(dtype: torch.dtype) -> str:
    """``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
