"""Faults that only show where torch watches: opcheck, compilation, transforms, autocast."""

from fnmatch import fnmatchcase

import pytest
import torch

from accel_conformance.case import Outcome, execute
from accel_conformance.faults import FAULTS, plant
from accel_conformance.subject import find
from accel_conformance.suite import watched

TORCH = [name for name, fault in FAULTS.items() if fault.where[0].startswith("torch/")]


@pytest.fixture(autouse=True)
def _compile_afresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def broken(id, op, dtype="float32"):
    """Rules that an implementation breaks where torch watches, by the case that saw it."""
    cases = watched.cases(find("host"))
    mine = [c for c in cases if (c.op, c.implementation, c.dtype) == (op, id, dtype)]
    assert mine
    results = [execute(case) for case in mine]
    assert {r.outcome for r in results} <= {Outcome.PASSED, Outcome.FAILED}
    return {r.case.id: {b.rule for b in r.evidence.broken} for r in results if r.evidence.broken}


@pytest.mark.parametrize("name", TORCH)
def test_a_fault_is_caught_for_its_own_reason(name):
    fault = FAULTS[name]
    with plant(fault, "reference") as planted:
        found = broken(planted, fault.op)
    for pattern in fault.where:
        assert any(fnmatchcase(id, pattern) and fault.reason in r for id, r in found.items()), found
    assert set().union(*found.values()) <= {fault.reason, *fault.also}


@pytest.mark.parametrize("op", ["linear", "embedding", "logprob"])
def test_what_is_right_passes(op):
    assert broken("reference", op) == broken("reference", op, "bfloat16") == {}
