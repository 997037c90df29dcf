"""The report: ``report.json`` for programs, ``report.html`` for people."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

from accel_conformance.report.data import content
from accel_conformance.report.page import page

__all__ = ["content", "dumps", "write"]


def write(found: dict[str, Any], folder: str | PathLike[str]) -> Path:
    """Write a report's content as both into ``folder``, made if need be; the page's path."""
    into = Path(folder)
    into.mkdir(parents=True, exist_ok=True)
    (into / "report.json").write_text(dumps(found), encoding="utf-8")
    (into / "report.html").write_text(page(found), encoding="utf-8")
    return into / "report.html"


def dumps(found: object) -> str:
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
