"""A report's cases as its page carries them: what many have in common is said once.

    shares   names of the shares of error budgets that cases have, as ``"rms_share"``
    parts    what cases are made of, each once
    rows     a case each: numbers of its parts, then seconds, then its shares

A case has the keys that report.json documents, those of its parts together. Instead of its id there
are ``group`` and ``name``, which a slash joins; in ``reproduce``, NUL stands for the id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

Cases = list[dict[str, Any]]


def packed(cases: Cases) -> dict[str, Any]:
    shares = sorted({key for case in cases for key in case if key.endswith("_share")})
    parts: dict[str, int] = {}
    rows = [
        [
            *(parts.setdefault(json.dumps(part), len(parts)) for part in _parts(case)),
            _short(case["seconds"]),
            *(_short(case.get(share)) for share in shares),
        ]
        for case in cases
    ]
    return {"shares": shares, "parts": [json.loads(part) for part in parts], "rows": rows}


def _parts(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Cut where cases are alike."""
    group, _, name = case["id"].rpartition("/")
    yield {"group": group, **_some(case, ("area", "op", "implementation", "dtype"))}
    yield {"name": name}
    yield {"input": case.get("input")}
    told = case["broken"] or case["refusals"]  # of which the message is made
    yield {
        **_some(case, ("outcome", "ran", "rules", "broken", "refusals")),
        "reason": case.get("reason", ""),
        "message": "" if told else case["message"],
    }
    yield {"reproduce": case["reproduce"].replace(case["id"], "\0")}


def _some(case: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: case[key] for key in keys}


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.3g}")
