"""The report: ``report.json`` for programs, ``report.html`` for people."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

from accel_conformance.report.data import content
from accel_conformance.report.page import page

__all__ = ["content", "dumps", "show", "write"]


def write(found: dict[str, Any], folder: str | PathLike[str]) -> Path:
    """Write a report's content as both into ``folder``, made if need be; the page's path."""
    into = Path(folder)
    into.mkdir(parents=True, exist_ok=True)
    (into / "report.json").write_text(dumps(found), encoding="utf-8")
    return show(into)


def show(folder: str | PathLike[str]) -> Path:
    """Write the page of what lies in ``folder``: ``report.json``, and ``self-test.json``, which
    says what the suite that made the report would have caught; the page's path."""
    into = Path(folder)
    shown = into / "report.html"
    shown.write_text(page(_read(into / "report.json"), _read(into / "self-test.json")), "utf-8")
    return shown


def dumps(found: object) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
