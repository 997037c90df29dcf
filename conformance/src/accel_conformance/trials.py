"""The self-test: faults planted one at a time in a right backend, and which cases killed each.

A fault is killed if in every place that it names a case says that its rule is broken, and nowhere
else, and no rule but those it may drag along. What the faults are planted in must pass the same
cases. Only cases that could see a fault are run: of its op, its implementation, its dtypes, or of
the device layer; and of areas that take long those where it must show.
"""

from __future__ import annotations

import datetime
import gc
import importlib
import importlib.util
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from accel import testing
from accel.errors import close_matches
from accel_conformance import __version__, suite
from accel_conformance import subject as _subject
from accel_conformance.case import Case, Result
from accel_conformance.expectations import Expectations
from accel_conformance.faults import FAULTS, NOTHING, Fault, host, plant
from accel_conformance.rules import RULES
from accel_conformance.selection import Selection, UsageError
from accel_conformance.session import Session

SCHEMA = 1
TAKE_LONG = {"large", "torch", "drawn", "engine"}
PACKAGE = host.ENGINE.partition(".")[0]
MODEL = "engine/gpt2/float32"  # the one that faults of the engine are looked for in


@dataclass(frozen=True)
class Trial:
    """What became of a planted fault: ``problems`` say why it is not killed for its own reason."""

    fault: Fault
    results: Sequence[Result]
    problems: tuple[str, ...]
    seconds: float

    @property
    def killers(self) -> list[str]:
        """Ids of the cases that say the fault's rule is broken."""
        return _breaking(self.results, self.fault.reason)

    @property
    def planted(self) -> bool:
        return bool(self.results)

    @property
    def verdict(self) -> str:
        if not self.planted:
            return "not planted"
        if not self.problems:
            return "killed"
        return "killed otherwise" if self.killers else "survived"


@dataclass
class SelfTest:
    """``trials`` grows as faults are planted; those of no fault come first."""

    faults: Sequence[Fault]
    seconds: float = 0.0
    trials: list[Trial] = field(default_factory=list)

    def run(self, fault: Fault) -> Trial:
        """Plant one, and keep what became of it."""
        found = trial(fault)
        self.trials.append(found)
        self.seconds += found.seconds
        return found

    @property
    def plan(self) -> list[Fault]:
        """Nothing, planted in all that faults are planted in, then the faults."""
        return [*_nothings(self.faults), *self.faults]

    @property
    def passed(self) -> bool:
        return not any(trial.problems for trial in self.trials)


def chosen(pattern: str | None = None) -> list[Fault]:
    """The faults whose name or kind matches, by kind; UsageError if there is none."""
    found = [
        fault
        for fault in FAULTS.values()
        if pattern is None or fnmatchcase(fault.name, pattern) or fault.kind == pattern
    ]
    if not found:
        kinds = {fault.kind for fault in FAULTS.values()}
        raise UsageError(
            f"no fault or kind is {pattern!r}; {close_matches(pattern, [*kinds, *FAULTS])}"
        )
    return sorted(found, key=lambda fault: fault.kind)


def trial(fault: Fault, *, quick: bool = False) -> Trial:
    """Plant a fault, or :data:`NOTHING`, and judge. ``quick`` runs no more than shows the fault in
    each place that it names; of no fault, of cases that differ in their input alone one."""
    if _lacking(fault):
        return Trial(fault, (), (), 0.0)
    began = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small calls: threads would only wait for each other
    gc.freeze()  # memory figures are read after collections, which need not go over all of torch
    try:
        with testing.installed(_right(fault)), plant(fault) as planted:
            session = _session(fault, planted)
            run = _run_some if quick else _run_all
            results = list(run(session, fault))
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads)
    problems = tuple(_problems(fault, results))
    return Trial(fault, results, problems, time.perf_counter() - began)


def _run_all(session: Session, fault: Fault) -> Iterator[Result]:
    return map(session.run, session.cases)


def _run_some(session: Session, fault: Fault) -> Iterator[Result]:
    if fault.role == NOTHING.role:
        yield from map(session.run, Selection(level="smoke").of(session.cases))
        return
    for pattern in fault.where:
        for case in session.cases:
            if fnmatchcase(case.id, pattern):
                result = session.run(case)
                yield result
                if _breaking([result], fault.reason):
                    break


def _lacking(fault: Fault) -> list[str]:
    """Packages that are not installed, without which the fault cannot be planted."""
    needed = (PACKAGE, "transformers") if "engine" in fault.areas else ()
    return [name for name in needed if importlib.util.find_spec(name) is None]


def _right(fault: Fault) -> Any:
    """The plugin of the backend that the fault is planted in."""
    if "engine" in fault.areas:
        return importlib.import_module(f"{PACKAGE}.plugin")
    return host.plugin()


def _session(fault: Fault, planted: str) -> Session:
    """The cases that could see the fault."""
    backend = _right(fault).accel_backend().name if fault.op else planted
    subject = _subject.find(backend)
    own = tuple(target for target in subject.targets if target.impl.id == planted)
    subject = replace(subject, targets=own if fault.op else ())
    started = datetime.datetime.now(datetime.timezone.utc)
    cases = [case for case in suite.cases(subject) if _sees(case, fault)]
    return Session(subject, Selection(), cases, Expectations(), started)


def _sees(case: Case, fault: Fault) -> bool:
    if fault.op is None:
        return case.area == "accelerator"
    if "engine" in fault.areas:
        return case.group == MODEL
    if case.long:
        return any(fnmatchcase(case.id, pattern) for pattern in fault.where)
    if case.area in TAKE_LONG - fault.areas:
        return False
    return case.op == fault.op and case.dtype in (None, *fault.dtypes)


def _nothings(faults: Iterable[Fault]) -> Iterator[Fault]:
    """No fault, of each op and implementation that the faults are of, where and in the dtypes that
    those are looked for."""
    groups: dict[tuple[str | None, str, tuple[str, ...]], list[Fault]] = {}
    for fault in faults:
        base = "reference" if fault.op is None else fault.base
        groups.setdefault((fault.op, base, fault.beside), []).append(fault)
    for (op, base, beside), some in groups.items():
        dtypes = sorted({dtype for fault in some for dtype in fault.dtypes})
        where = sorted({pattern for fault in some for pattern in fault.where})
        yield replace(
            NOTHING, op=op, base=base, beside=beside, dtypes=tuple(dtypes), where=tuple(where)
        )


def _problems(fault: Fault, results: Sequence[Result]) -> Iterator[str]:
    if fault.role == NOTHING.role:
        for result in results:
            if result.outcome.bad:
                yield f"a false alarm: {result.case.id}: {result.message()}"
        return
    found = _breaking(results, fault.reason)
    for pattern in fault.where:
        if not any(fnmatchcase(id, pattern) for id in found):
            yield f"no case like {pattern} says that {fault.reason} is broken"
    for id in found:
        if not fault.explains(id):
            yield f"{id} says that {fault.reason} is broken"
    others = {broken.rule for result in results for broken in result.evidence.broken}
    for rule in sorted(others - fault.breaks):
        ids = _breaking(results, rule)
        yield f"{rule} is broken too, by {len(ids)} cases, the first is {ids[0]}"


def _breaking(results: Iterable[Result], rule: str) -> list[str]:
    return [
        result.case.id
        for result in results
        if any(broken.rule == rule for broken in result.evidence.broken)
    ]


def content(test: SelfTest) -> dict[str, Any]:
    """What ``self-test.json`` says.

    schema     1; raised when a key changes its meaning or goes
    verdict    "passed" if every fault was killed for its own reason and nothing else was
    suite      version of this package          seconds   of all
    unfaulted  the right implementations, each {"op", "implementation", "dtypes", "cases": how many
               were run, "seconds", "problems"}; an op of null is the device layer
    faults     in the order they were planted, each
        name, kind, says      what is wrong
        rule, number          the rule it breaks, by name and by number
        where                 patterns of the cases that must say so
        also                  rules that may be broken as a consequence
        op, implementation, dtypes   what it was planted in; null for the device layer
        cases, killed_by      how many were run, and the ids of those that said so
        verdict               "killed", "killed otherwise", "survived", or "not planted" for want of
                              a package that it is planted in
        problems              why it is not simply killed
        seconds
    """
    nothing = [one for one in test.trials if one.fault.role == NOTHING.role]
    return {
        "schema": SCHEMA,
        "verdict": "passed" if test.passed else "failed",
        "suite": __version__,
        "seconds": round(test.seconds, 3),
        "unfaulted": [{**_planted(one), "problems": list(one.problems)} for one in nothing],
        "faults": [_row(one) for one in test.trials if one.fault.role != NOTHING.role],
    }


def _planted(trial: Trial) -> dict[str, Any]:
    fault = trial.fault
    return {
        "op": fault.op,
        "implementation": fault.base if fault.op else None,
        "dtypes": list(fault.dtypes) if fault.op else None,
        "cases": len(trial.results),
        "seconds": round(trial.seconds, 3),
    }


def _row(trial: Trial) -> dict[str, Any]:
    fault = trial.fault
    return {
        "name": fault.name,
        "kind": fault.kind,
        "says": fault.says,
        "rule": fault.reason,
        "number": RULES[fault.reason].number,
        "where": list(fault.where),
        "also": sorted(fault.also),
        **_planted(trial),
        "killed_by": trial.killers,
        "verdict": trial.verdict,
        "problems": list(trial.problems),
    }
