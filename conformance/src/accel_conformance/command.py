"""``run()``: from options to an exit status. Knows the order of things, and nothing of pytest.

pytest is one way to run the cases (plugin.py); this is the other. It starts no pytest, so it can be
called from anywhere, a pytest session included.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from accel_conformance import report
from accel_conformance.console import Console, console_for
from accel_conformance.selection import Selection, UsageError
from accel_conformance.session import Session, prepare
from accel_conformance.subject import installed_too

PASSED, FAILED, UNUSABLE = 0, 1, 2


@dataclass(frozen=True)
class Options:
    """The arguments of :func:`accel_conformance.run`."""

    backend: str
    report: str | PathLike[str] | None = None
    ops: Sequence[str] | None = None
    dtypes: Sequence[str] | None = None
    impls: Sequence[str] | None = None
    cases: Sequence[str] | None = None
    profile: str | None = None
    level: str = "full"
    seed: int = 0
    expectations: str | PathLike[str] | None = None
    list_only: bool = False
    json: bool = False
    quiet: bool = False
    plugins: Sequence[object] = ()

    def selection(self) -> Selection:
        return Selection(
            self.ops, self.impls, self.dtypes, self.cases, self.profile, self.level, self.seed
        )


def conform(options: Options) -> int:
    """Test a backend as asked; the exit status."""
    try:
        with installed_too(options.plugins):
            session = prepare(options.backend, options.selection(), options.expectations)
            if options.list_only:
                _list(session, as_json=options.json)
                return PASSED
            _run(session, console_for(quiet=options.quiet or options.json))
            _tell(session, options)
    except UsageError as error:
        print(f"accel conform: {error}", file=sys.stderr)
        return UNUSABLE
    return PASSED if session.passed else FAILED


def _run(session: Session, console: Console) -> None:
    with console.progress(session) as advance:
        for case in session.cases:
            advance(session.run(case))


def _tell(session: Session, options: Options) -> None:
    found = report.content(session)
    page = report.write(found, options.report) if options.report is not None else None
    if options.json:
        print(report.dumps(found), end="")
        return
    console = console_for(quiet=options.quiet)
    console.table(found)
    console.failures(session)
    console.verdict(session, page)


def _list(session: Session, *, as_json: bool) -> None:
    ids = [case.id for case in session.cases]
    print(json.dumps(ids, indent=1) if as_json else "\n".join(ids))
