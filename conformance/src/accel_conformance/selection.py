"""Which cases of a subject are run: by op, implementation, dtype and id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from accel.contracts import CONTRACTS
from accel.errors import close_matches
from accel.ops.orders import names_it
from accel_conformance.case import Case


class UsageError(ValueError):
    """A run that cannot be done as asked; the message says why and what could be asked."""


@dataclass(frozen=True)
class Selection:
    """None selects all. An implementation is named by its id or the part of it after the dot, a
    case by a pattern (``*``, ``?``, ``[]``) that its whole id matches."""

    ops: Sequence[str] | None = None
    impls: Sequence[str] | None = None
    dtypes: Sequence[str] | None = None
    cases: Sequence[str] | None = None

    def of(self, cases: Sequence[Case]) -> list[Case]:
        """The cases selected; UsageError for a name nobody has and for an empty selection."""
        self._check(cases)
        found = [case for case in cases if self._takes(case)]
        if not found:
            raise UsageError(f"nothing to test: no case is {self}")
        return found

    def _check(self, cases: Sequence[Case]) -> None:
        ids = {case.implementation for case in cases if case.implementation}
        dtypes = {case.dtype for case in cases if case.dtype}
        _known("op", self.ops, CONTRACTS)
        _known("dtype", self.dtypes, dtypes)
        for name in self.impls or ():
            if not any(names_it(name, id) for id in ids):
                raise UsageError(f"unknown implementation {name!r}; {close_matches(name, ids)}")
        for pattern in self.cases or ():
            if not any(fnmatchcase(case.id, pattern) for case in cases):
                near = close_matches(pattern, (case.id for case in cases))
                raise UsageError(f"no case matches {pattern!r}; {near:.300}")

    def _takes(self, case: Case) -> bool:
        return (
            (self.ops is None or case.op in self.ops)
            and (self.dtypes is None or case.dtype in self.dtypes)
            and (self.impls is None or _named(case.implementation, self.impls))
            and (self.cases is None or any(fnmatchcase(case.id, p) for p in self.cases))
        )

    def __str__(self) -> str:
        given = {"of op": self.ops, "by": self.impls, "in": self.dtypes, "like": self.cases}
        return " and ".join(f"{word} {' or '.join(v)}" for word, v in given.items() if v)


def _named(id: str | None, names: Iterable[str]) -> bool:
    return id is not None and any(names_it(name, id) for name in names)


def _known(kind: str, names: Sequence[str] | None, known: Iterable[str]) -> None:
    for name in names or ():
        if name not in known:
            raise UsageError(f"unknown {kind} {name!r}; {close_matches(name, known)}")
