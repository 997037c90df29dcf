"""A fault, and planting it by a plugin: one implementation wrapped and offered beside the others,
or a device layer with one thing wrong."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Any

from accel import hookimpl, op_builder, testing
from accel.contracts import CONTRACTS, Contract
from accel.engine import ModelPolicy
from accel.errors import UnknownOpError, close_matches
from accel.hookspecs import API
from accel.op_builder import Impl, OpBuilder, Request
from accel.ops import catalog
from accel.refusal import Refusal
from accel_conformance.faults import device, host
from accel_conformance.subject import installed_too

Kernel = Callable[..., Any]
Formula = Callable[..., Any]
Device = type[device.SimulatedAccelerator]

PACKAGE = "planted"
DTYPES = ("float32", "bfloat16", "float16", "float64")

FAULTS: dict[str, Fault] = {}

# A wrong number breaks whichever of these looks at it.
NUMBERS = frozenset({"accuracy", "componentwise", "whole"})


@dataclass(frozen=True)
class Fault:
    """A way to be wrong, and for what reason the suite must say so.

    ``kind``     what goes wrong: ``"numeric"``, ``"gradient"``, ...
    ``says``     what is wrong, in one sentence
    ``reason``   the rule it breaks
    ``where``    patterns of the ids of cases that break the rule: in each one at least, and
                 nowhere else
    ``also``     rules that may be broken as a consequence
    ``op``       the op it is for; None for the device layer
    ``base``     the implementation it is planted in
    ``beside``   ops whose right implementations are offered under the same id
    ``dtypes``   in which it is looked for: those that ``where`` names, else one
    ``role``     what is wrong: a ``"kernel"``, how it writes ``"into"`` a place it is given, the
                 contract's ``"backward"`` or another of its ``"terms"``, an answer for the
                 builder's ``"reasons"``, a ``"builder"``, the ``"library"`` it compiles, a
                 ``"policy"`` of the engine, an ``"accelerator"``; of a fault that is none,
                 ``"nothing"``
    ``wrong``    makes a wrong one of a right one; ``reasons`` is answered by it
    ``claims``   fields of the :class:`accel.Impl` that are stated otherwise
    """

    name: str
    kind: str
    says: str
    reason: str
    where: tuple[str, ...]
    also: frozenset[str] = frozenset()
    op: str | None = "linear"
    base: str = "reference"
    beside: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = DTYPES[:1]
    role: str = "nothing"
    wrong: Callable[..., Any] | None = None
    claims: tuple[tuple[str, Any], ...] = ()

    @property
    def breaks(self) -> frozenset[str]:
        """Rules that may be broken with it planted."""
        named = {self.reason, *self.also}
        return frozenset(named | NUMBERS if named & NUMBERS else named)

    @property
    def areas(self) -> set[str]:
        """Of the cases that must say so."""
        return {pattern.partition("/")[0] for pattern in self.where}

    def explains(self, id: str) -> bool:
        """Whether a case may break the rule of its reason: one of ``where``, and where inputs are
        drawn, any."""
        return id.startswith("drawn/") or any(fnmatchcase(id, p) for p in self.where)


def faults_of(kind: str) -> Callable[..., Any]:
    """A decorator that registers a function as a fault of its name and of this kind."""

    def fault(
        reason: str,
        *where: str,
        also: str = "",
        op: str | None = "linear",
        role: str = "kernel",
        beside: tuple[str, ...] = (),
        **claims: Any,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """``also`` holds rules joined by spaces; the function's docstring says what is wrong."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            name = function.__name__
            named = tuple(dtype for dtype in DTYPES if f"/{dtype}/" in "".join(where))
            FAULTS[name] = Fault(
                name, kind, _sentence(function), reason, where, frozenset(also.split()),
                None if role == "accelerator" else op,
                _base(op, role, where, claims), beside, named or DTYPES[:1], role, function,
                tuple(claims.items()),
            )  # fmt: skip
            return function

        return register

    return fault


def _base(op: str | None, role: str, where: tuple[str, ...], claims: dict[str, Any]) -> str:
    """Claims of invariance are made of a kernel that keeps them; the library is of one, too."""
    if where[0].startswith("engine/"):
        return host.ENGINE
    exact = role in ("into", "library") or claims.get("shape_invariant")
    return host.EXACT.get(op or "", "reference") if exact else "reference"


def _sentence(function: Callable[..., Any]) -> str:
    first, _, _ = (inspect.getdoc(function) or "").partition("\n\n")
    return " ".join(first.split())


@contextmanager
def plant(fault: Fault, implementation: str | None = None) -> Iterator[str]:
    """What is at fault is installed in the body; yields the id of the implementation, or the name
    of the backend, that has it.

    An implementation (of the fault's own choice, or the one named) is copied and stays as it is,
    so that both can be tested side by side. A device layer is a simulated one.
    """
    if fault.op is None:
        with _planted_accelerator(fault) as name:
            yield name
        return
    entry = _entry(fault.op, implementation or fault.base)
    impl = replace(entry.impl, id=f"{PACKAGE}.{fault.name}", **dict(fault.claims))
    builders = [_builder(fault, impl, entry), *(_copy(op, impl.id) for op in fault.beside)]
    contract = CONTRACTS[fault.op]
    CONTRACTS[fault.op] = _terms(fault, contract)
    try:
        with installed_too([_pack(fault, builders)]):
            yield impl.id
    finally:
        CONTRACTS[fault.op] = contract


def _terms(fault: Fault, contract: Contract) -> Contract:
    """The contract as the fault has it. Gradients come from it, whoever computes the result."""
    if fault.role == "backward":
        return replace(contract, backward=fault.wrong(contract.backward))
    return fault.wrong(contract) if fault.role == "terms" else contract


@contextmanager
def _planted_accelerator(fault: Fault) -> Iterator[str]:
    accelerator = f"{__name__}:{fault.name}"
    with installed_too([testing.fake_backend(PACKAGE, accelerator=accelerator)]), device.present():
        yield PACKAGE


def __getattr__(name: str) -> type[device.SimulatedAccelerator]:
    """The device layer with a fault, by the fault's name: a plugin names its class by a path."""
    if name == NOTHING.name:
        return device.SimulatedAccelerator
    if name in FAULTS and FAULTS[name].role == "accelerator":
        return FAULTS[name].wrong(device.SimulatedAccelerator)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


NOTHING = Fault("nothing", "none", "Nothing is wrong.", reason="", where=())


def _entry(op: str, implementation: str) -> catalog.Entry:
    entries = {entry.impl.id: entry for entry in catalog.entries(op)}
    if implementation not in entries:
        near = close_matches(implementation, entries)
        raise UnknownOpError(f"no implementation {implementation!r} of {op!r}; {near}")
    return entries[implementation]


def _copy(op: str, id: str) -> type[OpBuilder]:
    """The right implementation of an op under another id."""
    entry = _entry(op, host.EXACT.get(op, "reference"))
    return _builder(NOTHING, replace(entry.impl, id=id), entry)


def _builder(fault: Fault, impl: Impl, entry: catalog.Entry) -> type[OpBuilder]:
    """A builder class whose one implementation is the faulty one."""

    def load(self: OpBuilder, _: Impl) -> Kernel:
        kernel = entry.builder.load(entry.impl)
        if fault.role == "into":
            return op_builder.Kernel(kernel, into=fault.wrong(kernel))
        if fault.role == "backward" and isinstance(kernel, op_builder.Kernel):
            return replace(kernel, forward=None, backward=None)  # the contract's is at fault
        return fault.wrong(kernel) if fault.role == "kernel" else kernel

    def reasons(self: OpBuilder, _: Impl, request: Request) -> list[Refusal]:
        answer = fault.wrong if fault.role == "reasons" else entry.builder.reasons
        return answer(entry.impl, request)  # type: ignore[no-any-return]

    body = {
        "device_type": entry.builder.device_type, "impls": (impl,), "load": load,
        "reasons": reasons,
    }  # fmt: skip
    if library := getattr(entry.builder, "library", None):
        body["library"] = fault.wrong(library) if fault.role == "library" else library
    family = type(entry.builder.family(), (OpBuilder,), body)
    return fault.wrong(family) if fault.role == "builder" else family


def _pack(fault: Fault, builders: list[type[OpBuilder]]) -> ModuleType:
    """A plugin that brings builders, perhaps a policy, and no device."""

    @hookimpl
    def accel_op_builders() -> list[type[OpBuilder]]:
        return builders

    @hookimpl
    def accel_policies() -> list[type[ModelPolicy]]:
        return [fault.wrong()] if fault.role == "policy" else []

    pack = ModuleType(f"{PACKAGE}_{fault.name}")
    vars(pack).update(
        ACCEL_API=".".join(map(str, API)), accel_op_builders=accel_op_builders,
        accel_policies=accel_policies,
    )  # fmt: skip
    return pack
