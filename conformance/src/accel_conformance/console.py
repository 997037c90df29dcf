"""What a run looks like in a terminal, and, in plain lines, where there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import rich.console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from accel_conformance.case import Outcome, Result
from accel_conformance.matrix import Cell, matrix
from accel_conformance.report.data import reproduce
from accel_conformance.session import Session

Advance = Callable[[Result], None]

STYLES = {
    "passed": "green", "failed": "bold red", "unexpected": "bold red", "untested": "bold red",
    "expected": "yellow",
    "refused": "cyan", "skipped": "dim",
}  # fmt: skip

PIPE_WIDTH = 160  # where nobody says how wide it is, room for the table
SHOWN = 20  # failures printed in full; the report has all


def console_for(*, quiet: bool) -> Console:
    out = rich.console.Console(highlight=False)
    if not out.is_terminal:
        out = rich.console.Console(highlight=False, width=PIPE_WIDTH)
    return Console(out, quiet=quiet)


class Console:
    """Prints a session. ``quiet``: failures and the verdict only."""

    def __init__(self, out: rich.console.Console, *, quiet: bool) -> None:
        self.out = out
        self.quiet = quiet

    def progress(self, session: Session) -> AbstractContextManager[Advance]:
        """A context in which each result is announced."""
        if self.quiet:
            return _silence()
        return self._bar(session) if self.out.is_terminal else self._lines(session)

    @contextmanager
    def _bar(self, session: Session) -> Iterator[Advance]:
        columns = (
            BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[bad]}"), TextColumn("{task.description}"),
        )  # fmt: skip
        with Progress(*columns, console=self.out, transient=True) as bar:
            task = bar.add_task("", total=len(session.cases), bad="")

            def advance(result: Result) -> None:
                bad = len(session.failures)
                said = f"[bold red]{bad} failed[/]" if bad else ""
                bar.update(task, advance=1, description=escape(result.case.group), bad=said)

            yield advance

    @contextmanager
    def _lines(self, session: Session) -> Iterator[Advance]:
        """One line for each group of cases that are run in a row, when its last one is done."""
        ends = {[*some][-1].id for _, some in groupby(session.cases, lambda case: case.group)}
        results: list[Result] = []

        def advance(result: Result) -> None:
            results.append(result)
            if result.case.id in ends:
                self._say(f"{result.case.group}  {_counted(results)}")
                results.clear()

        yield advance

    def table(self, report: dict[str, Any]) -> None:
        """Op and implementation by dtype: cases passed, and the largest error budget share."""
        found = matrix(report["cases"])
        if self.quiet or not found.rows:
            return
        table = Table(title="passed/cases · largest share of an error budget", title_style="dim")
        for heading in ("op", "implementation", *found.dtypes):
            table.add_column(heading, no_wrap=True)
        for op, rows in groupby(found.rows, key=lambda row: row.op):
            for i, row in enumerate(rows):
                table.add_row("" if i else op, row.implementation, *map(_painted, row.cells))
            table.add_section()
        self._say(table)

    def failures(self, session: Session) -> None:
        """Each failure, what is wrong and how to see it again; then stale expectations."""
        for result in session.failures[:SHOWN]:
            self._say(f"[bold red]{result.outcome.value.upper()}[/] {escape(result.case.id)}")
            for line in result.message().splitlines():
                self._say(f"    {escape(line)}")
            self._say(f"    [dim]{escape(reproduce(session, result.case.id))}[/]")
        rest = len(session.failures) - SHOWN
        if rest > 0:
            self._say(f"... and {rest} more; the report has them all (--report DIR)")
        for problem in session.problems:
            self._say(f"[bold red]EXPECTATION[/] {escape(problem)}")

    def verdict(self, session: Session, page: Path | None) -> None:
        """Totals, what they are of, and where the report is."""
        acc, totals = session.subject.accelerator, session.totals()
        counts = ", ".join(f"[{STYLES[name]}]{n} {name}[/]" for name, n in totals.items())
        stale = f", [bold red]{len(session.problems)} stale[/]" if session.problems else ""
        word = (
            "[bold red]shows nothing[/]" if not session.shown
            else "[bold green]conforms[/]" if session.passed
            else "[bold red]does not conform[/]"
        )  # fmt: skip
        name = escape(session.subject.candidate.distribution)
        self._say(f"{acc.name} ({name}) {word}: {counts}{stale} in {session.seconds:.1f} s")
        if page is not None:
            self._say(f"report: {escape(str(page))}")

    def _say(self, what: Any) -> None:
        # Files and pipes get whole lines.
        if self.out.is_terminal or not isinstance(what, str):
            self.out.print(what)
        else:
            self.out.print(what, soft_wrap=True)


def _counted(results: list[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    return ", ".join(f"{counts[o]} {o.value}" for o in Outcome if counts[o])


def _painted(cell: Cell | None) -> str:
    return "" if cell is None else f"[{STYLES[cell.outcome]}]{cell}[/]"


@contextmanager
def _silence() -> Iterator[Advance]:
    yield lambda result: None
