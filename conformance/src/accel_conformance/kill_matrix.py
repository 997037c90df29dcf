"""``accel conform --self-test``: faults from options to an exit status, and what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from os import PathLike
from pathlib import Path

import rich.box
import rich.console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from accel_conformance import trials
from accel_conformance.command import FAILED, PASSED, UNUSABLE
from accel_conformance.console import console_for
from accel_conformance.faults import NOTHING, Fault
from accel_conformance.report import dumps, show
from accel_conformance.rules import RULES
from accel_conformance.selection import UsageError
from accel_conformance.trials import SelfTest, Trial

STYLES = {
    "killed": "green",
    "not planted": "dim",
    "killed otherwise": "bold red",
    "survived": "bold red",
}

Advance = Callable[[Trial], None]


def run(
    faults: str | None, report: str | PathLike[str] | None, list_only: bool, as_json: bool,
    quiet: bool,
) -> int:  # fmt: skip
    """Plant the faults asked for, one at a time, and tell; the exit status."""
    try:
        test = SelfTest(trials.chosen(faults))
    except UsageError as error:
        print(f"accel conform: {error}", file=sys.stderr)
        return UNUSABLE
    if list_only:
        _list(test.faults, as_json=as_json)
        return PASSED
    out = console_for(quiet=quiet).out
    with _progress(out, test, quiet=quiet or as_json) as advance:
        for fault in test.plan:
            advance(test.run(fault))
    _tell(out, test, report, as_json=as_json, quiet=quiet)
    return PASSED if test.passed else FAILED


def _list(faults: list[Fault], *, as_json: bool) -> None:
    names = [fault.name for fault in faults]
    told = [f"{fault.kind:<11} {fault.name:<34} {fault.says}" for fault in faults]
    print(json.dumps(names, indent=1) if as_json else "\n".join(told))


@contextmanager
def _progress(out: rich.console.Console, test: SelfTest, *, quiet: bool) -> Iterator[Advance]:
    """A context in which each trial is announced: by a bar, where there is a terminal."""
    if quiet or not out.is_terminal:
        yield lambda trial: None
        return
    columns = (
        BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=len(test.plan))
        yield lambda trial: bar.update(task, advance=1, description=trial.fault.name)


def _tell(
    out: rich.console.Console, test: SelfTest, report: str | PathLike[str] | None, *,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    found = trials.content(test)
    if report is not None:
        folder = Path(report)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "self-test.json").write_text(dumps(found), encoding="utf-8")
        show(folder)
    if as_json:
        print(dumps(found), end="")
        return
    if not quiet:
        out.print(_matrix(test))
    for trial in test.trials:
        for problem in trial.problems:
            out.print(f"[bold red]{trial.fault.name}[/]: {escape(problem)}", soft_wrap=True)
    out.print(_verdict(test), soft_wrap=True)


def _matrix(test: SelfTest) -> Table:
    """A row for each fault: its rule, the cases that claim it, and how many killed it."""
    table = Table(
        title="faults planted one at a time · cases that killed each/run", title_style="dim",
        box=rich.box.SIMPLE_HEAD,
    )  # fmt: skip
    for heading in ("kind", "fault", "op", "rule", "claimed by", "killed by", "", "s"):
        right = heading in ("killed by", "s")
        table.add_column(heading, no_wrap=True, justify="right" if right else "left")
    planted = [trial for trial in test.trials if trial.fault.role != NOTHING.role]
    for kind, some in groupby(planted, key=lambda trial: trial.fault.kind):
        for i, trial in enumerate(some):
            table.add_row("" if i else kind, *_cells(trial))
        table.add_section()
    return table


def _cells(trial: Trial) -> tuple[str, ...]:
    fault = trial.fault
    more = f" +{len(fault.where) - 1}" if len(fault.where) > 1 else ""
    return (
        fault.name,
        fault.op or "",
        str(RULES[fault.reason]),
        escape(fault.where[0].removeprefix("accelerator/")) + more,
        f"{len(trial.killers)}/{len(trial.results)}",
        f"[{STYLES[trial.verdict]}]{trial.verdict}[/]",
        f"{trial.seconds:.1f}",
    )


def _verdict(test: SelfTest) -> str:
    nothing = [trial for trial in test.trials if trial.fault.role == NOTHING.role]
    faults = [trial for trial in test.trials if trial.fault.role != NOTHING.role]
    killed = sum(trial.verdict == "killed" for trial in faults)
    missed = sum(not trial.planted for trial in faults)
    left = f" ({missed} of the engine were not planted)" if missed else ""
    alarms = sum(len(trial.problems) for trial in nothing)
    passed = sum(len(trial.results) for trial in nothing) - alarms
    word = "[bold green]holds[/]" if test.passed else "[bold red]does not hold[/]"
    return (
        f"the suite {word}: {killed} of {len(faults)} faults killed for their own "
        f"reason{left}; without a "
        f"fault {passed} cases pass and {alarms} raise a false alarm, in {test.seconds:.0f} s"
    )
