"""``python docs/faults.py`` writes faults.md from the faults of the self-test; a test holds it
true."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from accel_conformance.faults import FAULTS, Fault
from accel_conformance.rules import RULES

PAGE = Path(__file__).with_name("faults.md")

HEAD = """# What the conformance suite must catch

The faults of `accel conform --self-test`. Made from the suite by `python docs/faults.py`.

Each is planted alone in a right backend, through the plugin API. It is killed if in every place
listed a case says that its rule (see `rules.md`) is broken, and nowhere else, and no rule is but
those that it may drag along. Without a fault everything must pass.
"""

KINDS = {
    "numeric": "a result is wrong",
    "gradient": "a gradient is wrong, which comes from the contract and not from the kernel",
    "memory": "memory is read, written or given away that is not the kernel's",
    "engine": "a row depends on its company: on other rows, on threads, on where it lies",
    "stream": "work is not ordered, on a simulated device that works later",
    "statistics": "figures are those of something else",
    "rng": "random numbers are not the device's own, or do not come again",
    "contract": "a promise is not kept: a claim, a refusal, a definition, an error, a fact",
    "build": "a library is made by halves, or more than once",
}


def page() -> str:
    """The page's text."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield HEAD
    kinds = list(KINDS)
    faults = sorted(FAULTS.values(), key=lambda fault: kinds.index(fault.kind))
    for kind, some in groupby(faults, key=lambda fault: fault.kind):
        of_kind = list(some)
        yield f"## {kind}: {KINDS[kind]} ({len(of_kind)})\n"
        yield "| fault | op | what is wrong | rule | cases |\n|---|---|---|---|---|"
        yield from map(_row, of_kind)
        yield ""


def _row(fault: Fault) -> str:
    where = ", ".join(f"`{pattern}`" for pattern in fault.where)
    rule = RULES[fault.reason]
    op = "" if fault.op is None else fault.op
    return f"| `{fault.name}` | {op} | {fault.says} | {rule.number} `{rule.name}` | {where} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
