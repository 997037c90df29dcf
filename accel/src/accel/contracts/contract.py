"""Contract: the single source of truth for an op, read by ops, backends, conformance and bench."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Largest error against float64, in units of the result's RMS.

    ``rms`` bounds the root mean square of the error, ``peak`` its largest element.
    """

    rms: float
    peak: float


def rounded_once(fp32: Tolerance) -> Mapping[torch.dtype, Tolerance]:
    """Per dtype, for an op computed in fp32 and rounded once: the half precisions have the error of
    that rounding, float64 is computed in itself."""
    return {
        torch.float64: Tolerance(rms=1e-14, peak=1e-13),
        torch.float32: fp32,
        torch.bfloat16: Tolerance(rms=2.5e-3, peak=2e-2),
        torch.float16: Tolerance(rms=3e-4, peak=2.5e-3),
    }


def rounded_twice(fp32: Tolerance) -> Mapping[torch.dtype, Tolerance]:
    """Where an implementation may round what lies between two steps as well: the second rounding is
    as large as the first and independent of it, so both have √2 of one's error."""
    once = rounded_once(fp32)
    halves = (torch.bfloat16, torch.float16)
    twice = {t: Tolerance(math.sqrt(2) * once[t].rms, math.sqrt(2) * once[t].peak) for t in halves}
    return {**once, **twice}


@dataclass(frozen=True)
class Cost:
    """Bytes that must be moved and floating point operations that must be done."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Sample:
    """A named input. ``make(dtype, device)`` returns the op's arguments in the schema's order.

    The values depend on the name alone: host-generated from a fixed seed, then moved.
    """

    name: str
    make: Callable[[torch.dtype, torch.device], tuple[Any, ...]]


@dataclass(frozen=True)
class BadInput:
    """Arguments that break the contract, and words the error must contain."""

    name: str
    make: Callable[[torch.dtype, torch.device], tuple[Any, ...]]
    says: str


@dataclass(frozen=True)
class Contract:
    """What an op promises.

    ``name``        of the op
    ``family``      builder that offers it, one of :data:`accel.op_builder.FAMILIES`
    ``schema``      torch schema of the arguments and result, without the name
    ``options``     argument names whose values implementations may refuse by
    ``presence``    optional tensors that implementations may refuse for being there
    ``sizes``       dimensions that implementations may refuse by: a name of each, the tensor and
                    which of its dimensions. Of few values, as requests are resolved for each
    ``check``       raises OpArgumentError unless the arguments keep the contract; metadata only
    ``fits``        whether the tensors' shapes and dtypes keep it, in half a microsecond; asked
                    per call, where ``check`` is asked per binding and when something went wrong
    ``reference``   the meaning, in the plainest possible torch
    ``backward``    ``(grad, needs, *args) -> one gradient or None per argument``; differentiable
                    torch operations, so that it serves every order of derivative. Of an op with
                    several results ``grad`` is a tuple, None where nothing flows back
    ``autocast``    dtype under autocast: ``"lower"``, autocast's; ``"input"``, that of the tensor
                    the op is keyed by; ``"keep"``, each argument's own
    ``wide``        arguments that have the dtype the op computes in, under autocast too
    ``reference_invariant``  the reference's rows do not depend on their neighbours
    ``tolerance``   per dtype, against float64
    ``samples``     inputs for conformance; each argument matters in one of them
    ``bad_inputs``  inputs that must be refused
    ``cost``        of a call with given arguments
    ``keyed_by``    the tensor whose dtype and device choose the implementation
    ``keeps_results``  ``backward`` is also given the ``results``, by that name
    ``rowwise``     leading dimensions of the first argument are rows, any number of them, and no
                    other argument speaks of them: a batch of inputs is more rows
    ``unread``      tensor arguments whose values ``backward`` does not read, only shape and dtype:
                    autograd does not keep them

    Tensor arguments come first. Floating point ones have the dtype of the one the op is keyed by,
    unless the contract says otherwise.
    """

    name: str
    family: str
    schema: str
    options: tuple[str, ...]
    check: Callable[..., None]
    fits: Callable[..., bool]
    fake: Callable[..., Any]
    reference: Callable[..., Any]
    backward: Callable[..., Sequence[Tensor | None]]
    autocast: str
    reference_invariant: bool
    tolerance: Mapping[torch.dtype, Tolerance]
    samples: Callable[[], Iterable[Sample]]
    bad_inputs: Callable[[], Iterable[BadInput]]
    cost: Callable[..., Cost]
    keyed_by: str = "x"
    wide: tuple[str, ...] = ()
    presence: tuple[str, ...] = ()
    sizes: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    rowwise: bool = True
    keeps_results: bool = False
    unread: tuple[str, ...] = ()

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The arguments by name, in the schema's order, with their defaults."""
        return inspect.signature(self.reference).parameters

    @cached_property
    def tensor_count(self) -> int:
        """How many arguments are tensors; they come first."""
        return self.schema.partition("->")[0].count("Tensor")

    @cached_property
    def result_count(self) -> int:
        """How many tensors the op returns; more than one come as a tuple."""
        return self.schema.partition("->")[2].count("Tensor")

    def key(self, tensors: Sequence[Any]) -> Tensor:
        """Of the tensor arguments, the one the op is keyed by."""
        found: Tensor = tensors[list(self.parameters).index(self.keyed_by)]
        return found

    def facts(self, tensors: Sequence[Any]) -> tuple[int, ...]:
        """Of the tensors of :attr:`presence`, which are there; then the :attr:`sizes`."""
        named = dict(zip(self.parameters, tensors))
        there = (named[name] is not None for name in self.presence)
        return *there, *(int(named[name].shape[at]) for name, at in self.sizes.values())

    def asked(self, facts: Sequence[int], options: Sequence[Any]) -> dict[str, Any]:
        """What a request says: by name, the options that implementations may refuse by, whether
        the tensors are there that they may refuse, and the sizes."""
        named = dict(zip(list(self.parameters)[self.tensor_count :], options))
        chosen = {name: named[name] for name in self.options}
        return chosen | dict(zip((*self.presence, *self.sizes), facts))

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> tuple[Any, ...]:
        """All arguments in order, defaults filled in."""
        given = {**dict(zip(self.parameters, args)), **(kwargs or {})}
        return tuple(given.get(name, p.default) for name, p in self.parameters.items())
