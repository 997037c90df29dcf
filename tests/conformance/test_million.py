"""Faults that only large calls show; and that a call is as large as it says."""

import pytest
import torch

from accel_conformance.case import Evidence, execute
from accel_conformance.faults import FAULTS, plant
from accel_conformance.subject import find
from accel_conformance.suite import million

LARGE = [name for name, fault in FAULTS.items() if "a_million" in fault.where[0]]


@pytest.fixture(autouse=True)
def _a_million(_some_results, monkeypatch):
    monkeypatch.setattr(million, "RESULTS", 10**6)


def cases_of(id):
    return [case for case in million.cases(find("host")) if case.implementation == id]


@pytest.mark.parametrize("name", LARGE)
def test_a_large_call_shows_a_fault(name):
    with plant(FAULTS[name], "reference") as planted:
        results = [execute(case) for case in cases_of(planted) if case.dtype == "float32"]
    assert [{one.rule for one in r.evidence.broken} for r in results] == [{FAULTS[name].reason}]


def test_a_million_results_are_asked_for(monkeypatch):
    (target,) = (t for t in find("host").targets if (t.op, t.impl.id) == ("rms_norm", "reference"))
    counted = []
    monkeypatch.setattr(
        type(target), "call", lambda self, args: counted.append(args[0]) or args[:1]
    )
    million.a_million(target, torch.float32, find("host").accelerator, Evidence())
    assert counted[0].numel() >= 10**6
    assert counted[0].shape[-1] > 2048
    assert {x.shape[0] for x in counted} >= {1, 7, 33, 257}
    assert counted[0].isfinite().all()
