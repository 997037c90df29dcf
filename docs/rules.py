"""``python docs/rules.py`` writes rules.md from the conformance suite; a test holds it true."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from accel_conformance.rules import CHAPTERS, RULES
from accel_conformance.selection import PROFILES

PAGE = Path(__file__).with_name("rules.md")

HEAD = """# What a backend must keep

The rules of `accel conform`, by number. Made from the suite by `python docs/rules.py`.

A number is given once. A *required* rule is a claim that a backend need not make, or harm done to
others: no expectations file excuses it. An *optional* one may be broken for a while by a backend
whose file says where, why and until when. A case that looks at no rule is *untested* and fails the
run, and so does a pass through another implementation than the one asked for (2.1).
"""


def page() -> str:
    """The page's text."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield HEAD
    for number, title in CHAPTERS.items():
        yield f"## {number} {title}\n"
        yield "| | rule | | |\n|---|---|---|---|"
        for rule in RULES.values():
            if rule.number.partition(".")[0] == number:
                yield f"| {rule.number} | `{rule.name}` | {rule.says} | {rule.strength} |"
        yield ""
    yield "## Profiles\n"
    yield "What a backend is for, and the areas of cases that must hold for it.\n"
    areas: list[str] = []
    for name, more in PROFILES.items():
        areas += more
        yield f"- `--profile {name}`: {', '.join(areas)}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
