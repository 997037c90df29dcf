"""The catalogue: every implementation there is of an op, with the builder that loads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from accel import registry as _registry
from accel.errors import UnknownOpError, close_matches
from accel.op_builder import FAMILIES, Impl, OpBuilder
from accel.refusal import Refusal
from accel.torch_impls import REFERENCE, TORCH_BUILDERS


@dataclass(frozen=True)
class Entry:
    """An implementation, its builder, and why the builder's plugin cannot be used (if so)."""

    impl: Impl
    builder: OpBuilder
    plugin_refusals: tuple[Refusal, ...] = ()

    @property
    def is_reference(self) -> bool:
        return self.impl.id == REFERENCE


def entries(op: str | None = None) -> Iterator[Entry]:
    """All implementations (of one op), the plugins' first, the references last."""
    for builder, refusals in _registry.registry().builders():
        for impl in builder.impls:
            if op in (None, impl.op):
                yield Entry(impl, builder, tuple(refusals))
    for builder in TORCH_BUILDERS:
        for impl in builder.impls:
            if op in (None, impl.op):
                yield Entry(impl, builder)


def ids() -> list[str]:
    """The ids of all implementations."""
    return sorted({entry.impl.id for entry in entries()})


def builder_for(backend: str, family: str) -> OpBuilder:
    """The builder a backend brings for a family, or the one over eager torch."""
    if family not in FAMILIES:
        raise UnknownOpError(f"unknown op builder {family!r}; {close_matches(family, FAMILIES)}")
    own = _registry.registry().builders_of(backend)
    return next(builder for builder in (*own, *TORCH_BUILDERS) if builder.family() == family)
