"""A case: one check with a stable id; what it saw (Evidence); what became of it (Result)."""

from __future__ import annotations

import contextvars
import enum
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accel.refusal import Refusal, sentence
from accel_conformance.rules import RULES

_HERE = str(Path(__file__).parent)


class Outcome(str, enum.Enum):
    """What became of a case. FAILED, UNEXPECTED and UNTESTED fail the run."""

    PASSED = "passed"
    FAILED = "failed"
    UNTESTED = "untested"  # looked at nothing, which proves nothing
    REFUSED = "refused"  # the implementation declined the request, with reasons
    EXPECTED = "expected"  # failed, as the expectations file says
    UNEXPECTED = "unexpected"  # did not fail, although the expectations file says so
    SKIPPED = "skipped"  # not run, as the expectations file says

    @property
    def bad(self) -> bool:
        return self in (Outcome.FAILED, Outcome.UNEXPECTED, Outcome.UNTESTED)


@dataclass(frozen=True)
class Broken:
    """A rule of :data:`accel_conformance.rules.RULES` that did not hold, and what was seen."""

    rule: str
    says: str

    @property
    def required(self) -> bool:
        return RULES[self.rule].required

    def __str__(self) -> str:
        return f"[{RULES[self.rule]}] {self.says}"


@dataclass
class Evidence:
    """What a check saw; checks write into it.

    ``input``       the arguments, in words
    ``ran``         id of the implementation that really ran
    ``rms_share``, ``peak_share``   the largest share of the error budgets used; 1 is all of it
    ``own_share``   the largest share that an element used of its own bound, beyond one rounding
    ``rules``       the rules that were looked at, by name, kept or broken
    """

    input: str | None = None
    ran: str | None = None
    rms_share: float | None = None
    peak_share: float | None = None
    own_share: float | None = None
    rules: set[str] = field(default_factory=set)
    broken: list[Broken] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def expect(self, rule: str, holds: bool, says: str) -> bool:
        """Note that ``rule`` was looked at, and is broken unless it ``holds``; the check goes on
        either way. KeyError for a rule there is not."""
        self.rules.add(RULES[rule].name)
        if not holds:
            self.broken.append(Broken(rule, says))
        return holds

    def expect_whole(self, rule: str, refusal: Refusal) -> bool:
        """Note whether a refusal says all it has to: a code, what was wanted, what was found, and
        what the user can do."""
        empty = [name for name, said in refusal.to_dict().items() if not said]
        return self.expect(rule, not empty, f"{refusal!r} says no {' and no '.join(empty)}")

    def refused(self, refusals: Sequence[Refusal]) -> None:
        """Note that the implementation declined."""
        self.refusals += refusals

    def used(self, rms_share: float, peak_share: float) -> None:
        """Note shares of the error budgets; the largest are kept."""
        self.rms_share = max(rms_share, self.rms_share or 0.0)
        self.peak_share = max(peak_share, self.peak_share or 0.0)

    def used_alone(self, share: float) -> None:
        """Note the largest share of an element's own bound; the largest is kept."""
        self.own_share = max(share, self.own_share or 0.0)

    def message(self) -> str:
        """What is wrong, one line per broken rule; else why the request was declined."""
        return "\n".join(map(str, self.broken)) or sentence(self.refusals)


@dataclass(frozen=True)
class Case:
    """One check with a stable id, ``area/...``; what it is about, where it is about an op."""

    id: str
    check: Callable[[Evidence], None]
    op: str | None = None
    implementation: str | None = None
    dtype: str | None = None
    required: bool = True  # an expectations file cannot have it skipped
    long: bool = False  # left out where one input of each kind is enough

    @property
    def area(self) -> str:
        return self.id.partition("/")[0]

    @property
    def group(self) -> str:
        """The id without its last part."""
        return self.id.rpartition("/")[0]


@dataclass(frozen=True)
class Result:
    """A case that was run (or skipped): ``why`` is the reason an expectation gives."""

    case: Case
    outcome: Outcome
    evidence: Evidence
    seconds: float
    why: str = ""

    def message(self) -> str:
        """What there is to say about it; empty for a plain pass."""
        if self.outcome is Outcome.UNEXPECTED:
            return f"[{RULES['expectation']}] was expected to fail ({self.why}) and did not"
        if self.outcome is Outcome.UNTESTED:
            return "looked at nothing: no rule was kept, none broken, nothing refused"
        said = self.evidence.message()
        return "; ".join(filter(None, (self.why, said)))


def execute(case: Case) -> Result:
    """Run a case's check. Whatever it raises is a broken rule, never the end of the run, and what
    it leaves in context variables (a stream, a choice of ops) is left to no other case."""
    evidence = Evidence()
    began = time.perf_counter()
    try:
        contextvars.copy_context().run(case.check, evidence)
    except Exception as error:
        evidence.expect("works", False, _described(error))
    seconds = time.perf_counter() - began
    outcome = (
        Outcome.FAILED if evidence.broken
        else Outcome.REFUSED if evidence.refusals
        else Outcome.PASSED if evidence.rules
        else Outcome.UNTESTED
    )  # fmt: skip
    return Result(case, outcome, evidence, seconds)


def _described(error: Exception) -> str:
    """The error and the place it came from: the innermost frame outside this package, if any."""
    frames = traceback.extract_tb(error.__traceback__)
    foreign = [frame for frame in frames if not frame.filename.startswith(_HERE)] or frames
    place = f" ({Path(foreign[-1].filename).name}:{foreign[-1].lineno})" if foreign else ""
    return f"raised {type(error).__name__}: {error}{place}"
