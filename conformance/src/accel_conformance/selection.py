"""Which cases of a subject are run: by profile, level, op, implementation, dtype and id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from accel.contracts import CONTRACTS
from accel.errors import close_matches
from accel.ops.orders import names_it
from accel_conformance.case import Case

# What a backend is for -> the areas that must hold for it, those of the ones before included.
PROFILES = {
    "inference": (
        "accelerator", "builders", "ops", "integers", "large", "guards", "bad_inputs", "rows",
        "features", "agreement", "special", "drawn",
    ),
    "training": ("gradients", "torch"),
    "engine": ("engine",),
}  # fmt: skip
LEVELS = ("smoke", "full")


class UsageError(ValueError):
    """A run that cannot be done as asked; the message says why and what could be asked."""


@dataclass(frozen=True)
class Selection:
    """None selects all. An implementation is named by its id or the part of it after the dot, a
    case by a pattern (``*``, ``?``, ``[]``) that its whole id matches. ``"smoke"`` takes no
    long one, and of cases that differ in the sample alone the first. ``seed`` is that of the inputs
    that are drawn."""

    ops: Sequence[str] | None = None
    impls: Sequence[str] | None = None
    dtypes: Sequence[str] | None = None
    cases: Sequence[str] | None = None
    profile: str | None = None
    level: str = "full"
    seed: int = 0

    def of(self, cases: Sequence[Case]) -> list[Case]:
        """The cases selected; UsageError for a name nobody has and for an empty selection."""
        self._check(cases)
        areas = self._areas()
        found = [case for case in cases if case.area in areas and self._takes(case)]
        if self.level == "smoke":
            found = _first_of_each(found)
        if not found:
            raise UsageError(f"nothing to test: no case is {self}")
        return found

    def _areas(self) -> set[str]:
        names = list(PROFILES)
        last = names[-1] if self.profile is None else self.profile
        return {area for name in names[: names.index(last) + 1] for area in PROFILES[name]}

    def _check(self, cases: Sequence[Case]) -> None:
        ids = {case.implementation for case in cases if case.implementation}
        dtypes = {case.dtype for case in cases if case.dtype}
        _known("profile", None if self.profile is None else [self.profile], PROFILES)
        _known("level", [self.level], LEVELS)
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
        profile = None if self.profile is None else [self.profile]
        given = {
            "of op": self.ops, "by": self.impls, "in": self.dtypes, "like": self.cases,
            "for": profile,
        }  # fmt: skip
        return " and ".join(f"{word} {' or '.join(v)}" for word, v in given.items() if v)


def _first_of_each(cases: Iterable[Case]) -> list[Case]:
    """Of each group of cases of one op, implementation and dtype the first, of large ones in one
    dtype; all others that are not long."""
    groups: set[str] = set()
    found = []
    for case in cases:
        group = case.group.rpartition("/")[0] if case.area == "large" else case.group
        if not case.long and (case.dtype is None or group not in groups):
            found.append(case)
        groups.add(group)
    return found


def _named(id: str | None, names: Iterable[str]) -> bool:
    return id is not None and any(names_it(name, id) for name in names)


def _known(kind: str, names: Sequence[str] | None, known: Iterable[str]) -> None:
    for name in names or ():
        if name not in known:
            raise UsageError(f"unknown {kind} {name!r}; {close_matches(name, known)}")
