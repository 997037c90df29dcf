"""The suite passes what is right, and fails every planted fault for the fault's own reason."""

from fnmatch import fnmatchcase

import conformance_host
import pytest

from accel.errors import UnknownOpError
from accel_conformance.faults import FAULTS, Fault, plant
from accel_conformance.rules import RULES

# Claims of invariance are tested on a kernel that keeps them.
INVARIANT = {
    "linear": conformance_host.LINEAR,
    "rms_norm": conformance_host.NORM,
    "attention": conformance_host.ATTENTION,
    "logprob": conformance_host.LOGPROB,
}


# Faults that a tracer, the engine or a large call must show have tests of their own, which take
# the cases of those alone.
ELSEWHERE = ("torch/", "engine/", "rows/*/a_million")
PLAIN = [name for name, fault in FAULTS.items() if not fault.where[0].startswith(ELSEWHERE)]
AREAS = ("builders", "ops", "integers", "gradients", "bad_inputs", "rows", "special")
PLAINLY = [f"{area}/*" for area in AREAS]


def base_of(fault):
    return INVARIANT[fault.op] if dict(fault.claims).get("shape_invariant") else "reference"


def failures(report):
    return [case for case in report["cases"] if case["outcome"] == "failed"]


def breaking(report, rule):
    """Ids of the cases that break a rule."""
    return {c["id"] for c in failures(report) if rule in {b["rule"] for b in c["broken"]}}


@pytest.mark.parametrize("op", INVARIANT)
@pytest.mark.parametrize("invariant", [False, True])
def test_a_planted_copy_without_a_fault_passes(conform, op, invariant):
    """In one dtype where rows are computed one by one, which takes long."""
    nothing = Fault("nothing", reason="none", where=(), op=op)
    dtypes = ["bfloat16"] if invariant else ["float32", "bfloat16"]
    with plant(nothing, INVARIANT[op] if invariant else "reference") as planted:
        status, report = conform(ops=[op], impls=[planted], dtypes=dtypes, cases=PLAINLY)
    assert failures(report) == []
    assert status == 0
    assert {case["ran"] for case in report["cases"]} <= {planted, None}


def dtypes_of(fault):
    """Two are enough for a fault of values that does not speak of another."""
    values = all(pattern.startswith(("ops/", "gradients/", "rows/")) for pattern in fault.where)
    return ["float32", "bfloat16"] if values and "float" not in str(fault.where) else None


def cases_of(fault):
    """Drawn inputs may show any fault, and are slow to find the simplest that does."""
    drawn = any(pattern.startswith("drawn/") for pattern in fault.where)
    return [*PLAINLY, "drawn/*"] if drawn else PLAINLY


@pytest.mark.parametrize("name", PLAIN)
def test_a_fault_is_caught_for_its_own_reason(conform, name):
    fault = FAULTS[name]
    with plant(fault, base_of(fault)) as planted:
        status, report = conform(
            ops=[fault.op], impls=[planted], dtypes=dtypes_of(fault), cases=cases_of(fault)
        )
    assert status == 1
    broken = breaking(report, fault.reason)
    for pattern in fault.where:
        assert any(fnmatchcase(id, pattern) for id in broken), f"nothing like {pattern} failed"
    assert [id for id in broken if not fault.explains(id)] == []
    others = {b["rule"] for case in failures(report) for b in case["broken"]}
    assert others <= fault.breaks


def test_faults_break_rules_there_are():
    for fault in FAULTS.values():
        assert {fault.reason, *fault.also} <= set(RULES), fault.name


def test_planting_leaves_no_trace(conform):
    fault = FAULTS["slope_forgotten"]
    with plant(fault, "reference") as planted:
        conform(ops=["linear"], impls=[planted], dtypes=["float32"], cases=PLAINLY)
    status, _ = conform(ops=["linear"], impls=["reference"], dtypes=["float32"], cases=PLAINLY)
    assert status == 0


def test_a_fault_is_planted_in_an_implementation_there_is():
    with (
        pytest.raises(UnknownOpError, match=r"did you mean 'host\.linear'"),
        plant(FAULTS["bias_twice"], "host.linaer"),
    ):
        pass
