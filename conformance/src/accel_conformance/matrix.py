"""The matrix of a session: implementations by dtypes, each cell a summary of its cases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# Worst first: a cell shows the worst there is in it.
WORST = ("failed", "unexpected", "untested", "expected", "passed", "refused", "skipped")
# Only where nothing passed does a refusal or a skip say what the cell is.


@dataclass(frozen=True)
class Cell:
    """The cases of one op, implementation and dtype.

    ``outcome`` is the worst among them, ``share`` the largest part of an error budget used.
    """

    outcome: str
    passed: int
    total: int
    share: float | None

    def __str__(self) -> str:
        count = f"{self.passed}/{self.total}"
        return count if self.share is None else f"{count} · {percent(self.share)}"


@dataclass(frozen=True)
class Row:
    op: str
    implementation: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Matrix:
    dtypes: tuple[str, ...]
    rows: tuple[Row, ...]


def matrix(cases: Iterable[dict[str, Any]]) -> Matrix:
    """The matrix of a report's cases; those without an op or a dtype are not in it."""
    found: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for case in cases:
        if case["op"] and case["dtype"]:
            row = found.setdefault((case["op"], case["implementation"]), {})
            row.setdefault(case["dtype"], []).append(case)
    dtypes = tuple(dict.fromkeys(dtype for row in found.values() for dtype in row))
    return Matrix(
        dtypes,
        tuple(
            Row(op, implementation, tuple(_cell(row.get(dtype)) for dtype in dtypes))
            for (op, implementation), row in found.items()
        ),
    )


def _cell(cases: list[dict[str, Any]] | None) -> Cell | None:
    if not cases:
        return None
    outcomes = [case["outcome"] for case in cases]
    shares = [share(case) for case in cases]
    measured = [s for s in shares if s is not None]
    return Cell(
        min(outcomes, key=WORST.index),
        outcomes.count("passed"),
        len(cases),
        max(measured) if measured else None,
    )


def share(case: dict[str, Any]) -> float | None:
    """The larger of a case's shares of the rms and the peak budget."""
    if case["rms_share"] is None:
        return None
    return float(max(case["rms_share"], case["peak_share"]))


def percent(share: float) -> str:
    """A share of a budget, in a form that stays short."""
    return f"{share:.0%}" if share < 10 else "> 1000%"
