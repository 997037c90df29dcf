"""A session: the cases of one run, run one by one, and what came of all of them."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike

import torch

import accel
from accel import registry as _registry
from accel.accelerator import Accelerator
from accel.errors import AccelError
from accel_conformance import expectations as _expectations
from accel_conformance import subject as _subject
from accel_conformance import suite
from accel_conformance.case import Case, Outcome, Result
from accel_conformance.expectations import Expectations
from accel_conformance.selection import Selection, UsageError
from accel_conformance.subject import Subject


@dataclass
class Session:
    """``cases`` are those selected; ``results`` grows as they are run."""

    subject: Subject
    selection: Selection
    cases: list[Case]
    expectations: Expectations
    started: datetime.datetime
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0

    def run(self, case: Case) -> Result:
        """Run one case and keep its result."""
        began = time.perf_counter()
        with _undisturbed(self.subject):
            result = self.expectations.run(case)
        self.seconds += time.perf_counter() - began
        self.results.append(result)
        return result

    @property
    def problems(self) -> tuple[str, ...]:
        """Lines on expectations that no longer hold, whichever cases were run."""
        return self.expectations.problems

    @property
    def failures(self) -> list[Result]:
        return [result for result in self.results if result.outcome.bad]

    @property
    def shown(self) -> bool:
        """Whether anything was: where every case is refused or left out, nothing is."""
        silent = (Outcome.REFUSED, Outcome.SKIPPED)
        return any(result.outcome not in silent for result in self.results)

    @property
    def passed(self) -> bool:
        return self.shown and not self.failures and not self.problems

    def totals(self) -> dict[str, int]:
        """How many cases had each outcome; outcomes nobody had are left out."""
        counts = Counter(result.outcome for result in self.results)
        return {outcome.value: counts[outcome] for outcome in Outcome if counts[outcome]}


def prepare(
    backend: str,
    selection: Selection | None = None,
    expectations: str | PathLike[str] | None = None,
) -> Session:
    """A session for a backend; UsageError says why there can be none."""
    selection = selection or Selection()
    try:
        subject = _subject.find(backend, selection.seed)
    except AccelError as error:
        raise UsageError(str(error)) from error
    cases = suite.cases(subject)
    assert subject.candidate.backend is not None
    file = expectations or subject.candidate.backend.expectations
    return Session(
        subject,
        selection,
        selection.of(cases),
        _expectations.read(file, cases),
        datetime.datetime.now(datetime.timezone.utc),
    )


@contextmanager
def _undisturbed(subject: Subject) -> Iterator[None]:
    """The subject's accelerator is chosen in the body; random state and threads are put back."""
    acc = subject.accelerator
    own = _random_state(acc)
    threads = torch.get_num_threads()
    try:
        with accel.use_accelerator(acc), torch.random.fork_rng(devices=()):
            yield
    finally:
        torch.set_num_threads(threads)
        if own is not None:
            acc.set_rng_state(own)


def _random_state(acc: Accelerator) -> torch.Tensor | None:
    try:
        return acc.get_rng_state()
    except Exception:  # it has none, or is broken there: the suite's business, not ours
        return None


def names() -> Sequence[str]:
    """The backends installed."""
    return [candidate.name for candidate in _registry.registry().backends()]
