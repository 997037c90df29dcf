"""The expectations file: which cases may fail or are not run, why, and until when.

    [[expect]]
    id = "ops/linear/accel_mychip.fast/float16/*" # a pattern the whole id matches: * ? []
    outcome = "fail"                              # or "skip"
    reason = "accumulates in float16; fixed in 0.3"
    expires = 2026-12-31                          # the last day it holds

All four keys are required. An entry that matches no case of the backend, one whose last day has
passed and one whose case does not fail make the run fail, so that the file cannot outlive its
reasons. No entry excuses a required rule that is broken, or skips a required case.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from accel.errors import close_matches
from accel_conformance.case import Case, Evidence, Outcome, Result, execute
from accel_conformance.selection import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KEYS = ("id", "outcome", "reason", "expires")
OUTCOMES = ("fail", "skip")


@dataclass(frozen=True)
class Entry:
    """One ``[[expect]]``: cases whose id matches ``id`` may ``outcome`` until ``expires``."""

    id: str
    outcome: str
    reason: str
    expires: datetime.date

    def matches(self, case: Case) -> bool:
        return fnmatchcase(case.id, self.id)


@dataclass(frozen=True)
class Expectations:
    """The entries of a file that hold today, and what is wrong with the others."""

    file: str | None = None
    entries: tuple[Entry, ...] = ()
    problems: tuple[str, ...] = ()

    def run(self, case: Case) -> Result:
        """The case's result, or none if it is not to be run, judged by what was expected."""
        entry = next((entry for entry in self.entries if entry.matches(case)), None)
        if entry is None:
            return execute(case)
        if entry.outcome == "skip" and not case.required:
            return Result(case, Outcome.SKIPPED, Evidence(), 0.0, entry.reason)
        result = execute(case)
        return Result(case, _judged(result), result.evidence, result.seconds, entry.reason)


def read(
    path: str | PathLike[str] | None, cases: Iterable[Case], today: datetime.date | None = None
) -> Expectations:
    """The expectations in a file (none for None), checked against all ``cases`` of the backend."""
    if path is None:
        return Expectations()
    today = today or datetime.date.today()
    cases = list(cases)
    entries = _entries(_located(path))
    expired = [entry for entry in entries if entry.expires < today]
    idle = [entry for entry in entries if not any(map(entry.matches, cases))]
    needed = {
        entry.id: case.id
        for entry in entries
        for case in cases
        if entry.outcome == "skip" and case.required and entry.matches(case)
    }
    problems = [
        *(f"{path}: {e.id!r} expired on {e.expires} ({e.reason})" for e in expired),
        *(f"{path}: {e.id!r} matches no case ({e.reason})" for e in idle),
        *(f"{path}: {id!r} skips {case}, which is required" for id, case in needed.items()),
    ]
    holding = tuple(e for e in entries if e not in expired)
    return Expectations(str(path), holding, tuple(problems))


def _judged(result: Result) -> Outcome:
    """The outcome of a case that was expected to fail."""
    if any(broken.required for broken in result.evidence.broken):
        return Outcome.FAILED
    return Outcome.EXPECTED if result.outcome is Outcome.FAILED else Outcome.UNEXPECTED


def _located(name: str | PathLike[str]) -> Path:
    """A path; or ``"package:file"``, a file that an importable package brings."""
    package, colon, file = str(name).partition(":")
    # A single letter is a drive.
    if not colon or len(package) == 1 or not all(p.isidentifier() for p in package.split(".")):
        return Path(name)
    try:
        return Path(str(files(package).joinpath(file)))
    except (ImportError, TypeError) as error:
        raise UsageError(f"cannot find the expectations file {name}: {error}") from error


def _entries(path: Path) -> list[Entry]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the expectations file {path}: {error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    _only_known(str(path), content, ("expect",))
    found = content.get("expect", [])
    if not isinstance(found, list):
        raise UsageError(f"{path}: an expectation is written as [[expect]]")
    return [_entry(f"{path}, [[expect]] number {i}", e) for i, e in enumerate(found, 1)]


def _entry(where: str, given: Mapping[str, Any]) -> Entry:
    _only_known(where, given, KEYS)
    for key in KEYS:
        if not given.get(key):
            raise UsageError(f"{where}: {key} is missing; all of {', '.join(KEYS)} are needed")
    if given["outcome"] not in OUTCOMES:
        near = close_matches(str(given["outcome"]), OUTCOMES)
        raise UsageError(f"{where}: unknown outcome {given['outcome']!r}; {near}")
    return Entry(
        str(given["id"]), given["outcome"], str(given["reason"]), _date(where, given["expires"])
    )


def _date(where: str, value: object) -> datetime.date:
    """TOML's own date, or one in quotes."""
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value
    try:
        return datetime.date.fromisoformat(str(value))
    except ValueError:
        raise UsageError(f"{where}: expires must be a day like 2026-12-31, not {value!r}") from None


def _only_known(where: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; {close_matches(key, known)}")
