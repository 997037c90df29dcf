"""What torch watches: opcheck, compilation, transforms, autocast, of an op that is right."""

import pytest
import torch

from accel_conformance.case import Outcome, execute
from accel_conformance.subject import find
from accel_conformance.suite import watched


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


@pytest.mark.parametrize("op", ["linear", "embedding", "logprob"])
def test_what_is_right_passes(op):
    assert broken("reference", op) == broken("reference", op, "bfloat16") == {}
