"""What a report says, as JSON can hold it.

    schema        2; raised when a key changes its meaning or goes
    verdict       "passed", or "failed" if an outcome was not as expected, or nothing was shown
    suite, core   {"name", "version"} of this package and of accel-core
    plugin        {"backend", "distribution", "vendor", "version", "device_type"}
    software      {"python", "torch", "numpy", "system"}
    device        {"name", "total_memory" (bytes), "compute_units", "count", "dtypes", "details"}
    selection     {"ops", "impls", "dtypes", "cases"}: lists of what was asked for, or null for all;
                  {"profile" (or null for all), "level", "seed"}
    started       when, ISO 8601 in UTC         seconds   of running cases
    totals        outcome -> number of cases
    expectations  {"file" (or null), "problems": lines on entries that no longer hold,
                  "entries": those that hold, each {"id", "outcome", "reason", "expires" (ISO 8601),
                  "cases": how many of those that were run it is for}}
    rules         rule -> {"number", "strength" ("required" or "optional"), "says": what it
                  promises, "cases": how many looked at it, "broken": in how many of them}
    cases         in the order they were run, each
        id, area, op, implementation, dtype       (the last three null where it has none)
        outcome       passed · failed · untested · refused · expected · unexpected · skipped
        input         the arguments in words, or null where there are none
        ran           id of the implementation that really ran, or null
        rms_share, peak_share   largest part of the error budgets used (1 is all; 1e9 is a budget
                      of zero, or NaN or infinity out of place), or null where none was measured
        own_share     the largest part an element used of its own bound on what computing it may
                      cost beside one rounding, or null
        seconds       of this case
        rules         names of the rules it looked at, kept or broken
        broken        [{"rule", "says"}]: the rules that did not hold, and what was seen
        reason        why it was expected, in the words of the expectations file; else empty
        message       why the outcome is not simply passed, in words
        refusals      [{"code", "want", "have", "remedy"}]
        reproduce     a command that runs this case alone

It is strict JSON: no NaN, no Infinity.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy
import torch

from accel_conformance import __version__
from accel_conformance.case import Result
from accel_conformance.rules import RULES
from accel_conformance.session import Session
from accel_conformance.target import name_of

SCHEMA = 2


def content(session: Session) -> dict[str, Any]:
    """The report of a session that has been run."""
    return {
        "schema": SCHEMA,
        "verdict": "passed" if session.passed else "failed",
        "suite": {"name": "accel-conformance", "version": __version__},
        "core": {"name": "accel-core", "version": version("accel-core")},
        "plugin": _plugin(session),
        "software": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "system": platform.platform(),
        },
        "device": _device(session),
        "selection": asdict(session.selection),
        "started": session.started.isoformat(timespec="seconds"),
        "seconds": round(session.seconds, 3),
        "totals": session.totals(),
        "expectations": _expectations(session),
        "rules": _rules(session),
        "cases": [_case(session, result) for result in session.results],
    }


def reproduce(session: Session, id: str) -> str:
    """A command that runs one case alone."""
    backend = shlex.quote(session.subject.accelerator.name)
    pattern = "".join(f"[{c}]" if c in "[*?" else c for c in id)
    seed = f" --accel-seed {session.selection.seed}" if session.selection.seed else ""
    return (
        f"pytest --pyargs accel_conformance --accel-backend {backend} "
        f"--accel-cases {shlex.quote(pattern)}{seed}"
    )


def _rules(session: Session) -> dict[str, Any]:
    seen = [result.evidence for result in session.results]
    return {
        name: {
            "number": rule.number,
            "strength": rule.strength,
            "says": rule.says,
            "cases": sum(name in evidence.rules for evidence in seen),
            "broken": sum(name in {b.rule for b in evidence.broken} for evidence in seen),
        }
        for name, rule in RULES.items()
    }


def _expectations(session: Session) -> dict[str, Any]:
    run = [result.case for result in session.results]
    return {
        "file": session.expectations.file,
        "problems": list(session.problems),
        "entries": [
            {
                **asdict(entry),
                "expires": entry.expires.isoformat(),
                "cases": sum(map(entry.matches, run)),
            }
            for entry in session.expectations.entries
        ],
    }


def _plugin(session: Session) -> dict[str, Any]:
    backend = session.subject.candidate.backend
    assert backend is not None
    return {
        "backend": backend.name,
        "distribution": session.subject.candidate.distribution,
        "vendor": backend.vendor,
        "version": backend.version,
        "device_type": backend.device_type,
    }


def _device(session: Session) -> dict[str, Any]:
    """Asked of the device layer that is under test: what it cannot tell rightly is null."""
    acc = session.subject.accelerator
    told: dict[str, Any] = {"name": None, "total_memory": None, "compute_units": None,
                            "details": {}}  # fmt: skip
    try:
        told |= asdict(acc.properties())
        told["details"] = _plain(told["details"])
    except Exception as error:
        told["name"] = f"unknown: properties() raised {type(error).__name__}"
    for number in ("total_memory", "compute_units"):
        if not isinstance(told[number], int):
            told[number] = None
    dtypes = [name_of(dtype) for dtype in acc.supported_dtypes()]
    return {**told, "name": str(told["name"]), "count": acc.device_count(), "dtypes": dtypes}


def _plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _case(session: Session, result: Result) -> dict[str, Any]:
    case, seen = result.case, result.evidence
    return {
        "id": case.id,
        "area": case.area,
        "op": case.op,
        "implementation": case.implementation,
        "dtype": case.dtype,
        "outcome": result.outcome.value,
        "input": seen.input,
        "ran": seen.ran,
        "rms_share": _rounded(seen.rms_share),
        "peak_share": _rounded(seen.peak_share),
        "own_share": _rounded(seen.own_share),
        "seconds": round(result.seconds, 5),
        "rules": sorted(seen.rules),
        "broken": [asdict(b) for b in seen.broken],
        "reason": result.why,
        "message": result.message(),
        "refusals": [refusal.to_dict() for refusal in seen.refusals],
        "reproduce": reproduce(session, case.id),
    }


def _rounded(share: float | None) -> float | None:
    return None if share is None else float(f"{share:.4g}")
