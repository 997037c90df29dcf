"""report.html: one page that needs nothing outside it, made of the files in html/.

Python fills the template with data; the scripts make of it what is seen. All that plugins say stays
data: it is read by JSON.parse and shown as text, and the page's own policy lets no script run but
the one whose hash it names, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from string import Template
from typing import Any

from accel_conformance.report.packed import packed

Content = dict[str, Any]

# In the order they are read; each uses what is before it.
SCRIPTS = (
    "dom.js", "data.js", "filters.js", "head.js", "matrix.js", "detail.js", "cases.js", "scale.js",
    "budget.js", "rules.js", "faults.js", "main.js",
)  # fmt: skip


def page(report: Content | None, self_test: Content | None = None) -> str:
    """The page of a report's content, and of a self-test's; either may be missing."""
    style = _file("page.css")
    script = "\n".join(map(_file, SCRIPTS))
    return Template(_file("page.html")).substitute(
        title=html.escape(_title(report, self_test)),
        policy=(
            f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
            "base-uri 'none'; form-action 'none'"
        ),
        style=style,
        script=script,
        data=_embedded(_data(report, self_test)),
    )


def _data(report: Content | None, self_test: Content | None) -> Content:
    """What data.js reads."""
    about = {key: value for key, value in (report or {}).items() if key != "cases"}
    cases = report["cases"] if report else []
    return {"report": about if report else None, "selfTest": self_test, **packed(cases)}


def _title(report: Content | None, self_test: Content | None) -> str:
    if report:
        word = "conforms" if report["verdict"] == "passed" else "does not conform"
        return f"{report['plugin']['backend']} {word}"
    holds = self_test and self_test["verdict"] == "passed"
    return f"the conformance suite {'holds' if holds else 'does not hold'}"


def _embedded(data: Content) -> str:
    """JSON that no element of HTML can end or begin in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _file(name: str) -> str:
    return files(__package__).joinpath("html").joinpath(name).read_text(encoding="utf-8")
