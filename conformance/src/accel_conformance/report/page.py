"""report.html: one page, nothing outside it, no script."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import jinja2

from accel_conformance.matrix import matrix, percent, share

BAD = ("failed", "unexpected", "untested")

# outcome -> (sign, what it means); in the order they are shown.
OUTCOMES = {
    "passed": ("✓", "kept every rule"),
    "failed": ("✗", "broke a rule"),
    "unexpected": ("!", "was written down to fail, and does not"),
    "untested": ("?", "looked at nothing"),
    "expected": ("~", "failed as written down"),
    "refused": ("\u2013", "declined, with a reason"),
    "skipped": ("·", "not run, as written down"),
}

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def page(found: dict[str, Any]) -> str:
    """The page of a report's content."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent, "bytes": in_bytes, "words": in_words, "tail": _tail, "last": _last,
    }  # fmt: skip
    cases = found["cases"]
    template = environment.from_string(
        files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    text = template.render(
        report=found,
        outcomes=OUTCOMES,
        bad_outcomes=BAD,
        matrix=matrix(cases),
        failures=_groups(case for case in cases if case["outcome"] in BAD),
        declined=_groups(case for case in cases if case["outcome"] not in (*BAD, "passed")),
        device_checks=[case for case in cases if case["area"] == "accelerator"],
        builder_checks=_by_builder(cases),
        tightest=_tightest(cases),
    )
    return text + "\n"


def in_bytes(count: int | None) -> str:
    """A number of bytes in the largest unit that leaves it at least 1."""
    if count is None:
        return "unknown"
    value, unit = float(count), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.3g} {UNITS[unit]}"


def in_words(value: Any) -> str:
    """A fact of a device: lists and tables on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    return str(value)


def _groups(cases: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Cases by what they are about: op and implementation, or the area where they have none."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        about = f"{case['op']} · {case['implementation']}" if case["op"] else case["area"]
        groups.setdefault(about, []).append(case)
    return groups


def _tightest(cases: list[dict[str, Any]], count: int = 8) -> list[tuple[dict[str, Any], float]]:
    """The passed cases that came nearest to their budgets."""
    used = [(case, share(case)) for case in cases if case["outcome"] == "passed"]
    measured = [(case, s) for case, s in used if s]
    return sorted(measured, key=lambda pair: -pair[1])[:count]


def _by_builder(cases: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Checks of op builders by what they are of; those of all builders first, under no name."""
    checks: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        if case["area"] == "builders":
            about = f"{case['op']} · {case['implementation']}" if case["op"] else ""
            checks.setdefault(about, []).append(case)
    return checks


def _tail(id: str) -> str:
    """An id without its area, in words."""
    return id.partition("/")[2].replace("_", " ").replace("/", ": ")


def _last(id: str) -> str:
    """The last part of an id."""
    return id.rpartition("/")[2]
