"""A fault, and planting it: one implementation wrapped, and offered beside the others by a plugin
that is a kernel pack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

from torch import Tensor

from accel import hookimpl
from accel.contracts import CONTRACTS, Contract
from accel.engine import ModelPolicy
from accel.errors import UnknownOpError, close_matches
from accel.hookspecs import API
from accel.op_builder import Impl, OpBuilder, Request
from accel.ops import catalog
from accel.refusal import Refusal
from accel_conformance.subject import installed_too

Kernel = Callable[..., Tensor]
Wrap = Callable[[Kernel], Kernel]
Formula = Callable[..., Any]
Answer = Callable[[Impl, Request], list[Refusal]]

PACKAGE = "planted"

FAULTS: dict[str, Fault] = {}

# A wrong number breaks whichever of these looks at it.
NUMBERS = frozenset({"accuracy", "componentwise", "whole"})


@dataclass(frozen=True)
class Fault:
    """A way to be wrong, and for what reason the suite must say so.

    ``reason``    the rule it breaks
    ``where``     patterns of the ids of cases that break the rule: in each one at least, and
                  nowhere else
    ``also``      rules that may be broken as a consequence
    ``op``        the op it is for
    ``kernel``    makes a wrong kernel of a right one
    ``backward``  makes a wrong gradient formula of the contract's
    ``reasons``   answers in the builder's place
    ``terms``     makes a wrong contract of the right one
    ``policy``    reads an architecture wrongly, in the place of the core's
    ``claims``    fields of the :class:`accel.Impl` that are stated otherwise
    """

    name: str
    reason: str
    where: tuple[str, ...]
    also: frozenset[str] = frozenset()
    op: str = "linear"
    kernel: Wrap | None = None
    backward: Callable[[Formula], Formula] | None = None
    reasons: Answer | None = None
    terms: Callable[[Contract], Contract] | None = None
    policy: Callable[[], type[ModelPolicy]] | None = None
    claims: tuple[tuple[str, Any], ...] = ()

    @property
    def breaks(self) -> frozenset[str]:
        """Rules that may be broken with it planted."""
        named = {self.reason, *self.also}
        return frozenset(named | NUMBERS if named & NUMBERS else named)

    def explains(self, id: str) -> bool:
        """Whether a case may break the rule of its reason: one of ``where``, and where inputs are
        drawn, any."""
        return id.startswith("drawn/") or any(fnmatchcase(id, p) for p in self.where)


def fault(
    reason: str,
    *where: str,
    also: str = "",
    op: str = "linear",
    role: str = "kernel",
    **claims: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a fault of its name; ``role`` is the field of :class:`Fault` it
    fills, ``also`` holds rules joined by spaces."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        parts: dict[str, Any] = {role: function}
        FAULTS[name] = Fault(
            name, reason, where, frozenset(also.split()), op, claims=tuple(claims.items()), **parts
        )
        return function

    return register


@contextmanager
def plant(fault: Fault, implementation: str) -> Iterator[str]:
    """A copy of ``implementation`` with the fault is installed in the body; yields its id.

    The implementation itself stays as it is, so that both can be tested side by side.
    """
    entry = _entry(fault.op, implementation)
    impl = replace(entry.impl, id=f"{PACKAGE}.{fault.name}", **dict(fault.claims))
    contract = CONTRACTS[fault.op]
    if fault.backward:
        # Gradients come from the contract, whoever computes the result.
        CONTRACTS[fault.op] = replace(contract, backward=fault.backward(contract.backward))
    if fault.terms:
        CONTRACTS[fault.op] = fault.terms(contract)
    try:
        with installed_too([_pack(fault, impl, entry.impl, entry.builder)]):
            yield impl.id
    finally:
        CONTRACTS[fault.op] = contract


def _entry(op: str, implementation: str) -> catalog.Entry:
    entries = {entry.impl.id: entry for entry in catalog.entries(op)}
    if implementation not in entries:
        near = close_matches(implementation, entries)
        raise UnknownOpError(f"no implementation {implementation!r} of {op!r}; {near}")
    return entries[implementation]


def _pack(fault: Fault, impl: Impl, right: Impl, builder: OpBuilder) -> ModuleType:
    """A plugin with one builder, whose one implementation is the faulty one."""

    def load(self: OpBuilder, _: Impl) -> Kernel:
        kernel = builder.load(right)
        return fault.kernel(kernel) if fault.kernel else kernel

    def reasons(self: OpBuilder, _: Impl, request: Request) -> list[Refusal]:
        return (fault.reasons or builder.reasons)(right, request)

    body = {
        "device_type": builder.device_type, "impls": (impl,), "load": load, "reasons": reasons,
    }  # fmt: skip
    family = type(builder.family(), (OpBuilder,), body)

    @hookimpl
    def accel_op_builders() -> list[type[OpBuilder]]:
        return [family]

    @hookimpl
    def accel_policies() -> list[type[ModelPolicy]]:
        return [fault.policy()] if fault.policy else []

    pack = ModuleType(f"{PACKAGE}_{fault.name}")
    vars(pack).update(
        ACCEL_API=".".join(map(str, API)), accel_op_builders=accel_op_builders,
        accel_policies=accel_policies,
    )  # fmt: skip
    return pack
