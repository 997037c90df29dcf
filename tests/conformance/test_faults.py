"""Every fault of the self-test is caught for its own reason, and nothing is where there is none.

Each is planted once and looked for until it shows in each place that it names. That it shows
nowhere else is for the whole self-test, which takes minutes.
"""

import conformance_host
import pytest

from accel.errors import UnknownOpError
from accel_conformance import trials
from accel_conformance.faults import FAULTS, NOTHING, plant
from accel_conformance.rules import RULES

RIGHT = list(trials.SelfTest(FAULTS.values()).plan)[: -len(FAULTS)]


@pytest.fixture
def _some_results():
    """A million, all of them."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught_for_its_own_reason(name):
    found = trials.trial(FAULTS[name], quick=True)
    assert found.killers
    assert found.problems == ()


@pytest.mark.parametrize("right", RIGHT, ids=lambda right: f"{right.op}-{right.base}")
def test_what_faults_are_planted_in_is_right(right):
    found = trials.trial(right, quick=True)
    assert found.results
    assert found.problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught_nowhere_else(name):
    assert trials.trial(FAULTS[name]).problems == ()


def test_faults_break_rules_there_are_and_say_what_is_wrong():
    for fault in FAULTS.values():
        assert {fault.reason, *fault.also} <= set(RULES), fault.name
        assert fault.says.endswith("."), fault.name
        assert fault.where, fault.name


def test_there_are_faults_of_every_kind():
    kinds = {fault.kind for fault in FAULTS.values()}
    assert kinds == {
        "numeric", "gradient", "memory", "engine", "stream", "rng", "statistics", "contract",
        "build",
    }  # fmt: skip
    assert len(FAULTS) >= 80


def test_planting_leaves_no_trace(conform):
    with plant(FAULTS["slope_forgotten"], "reference") as planted:
        status, _ = conform(cases=[f"*/linear/{planted}/float32/act_silu"])
        assert status == 1
    status, _ = conform(cases=["*/linear/reference/float32/act_silu"])
    assert status == 0


def test_a_fault_is_planted_in_an_implementation_there_is():
    with (
        pytest.raises(UnknownOpError, match=r"did you mean 'host\.linear'"),
        plant(FAULTS["bias_twice"], "host.linaer"),
    ):
        pass


def test_a_fault_that_nothing_claims_survives():
    """The judge itself: no fault at all, told that one must show."""
    silent = trials.replace(
        NOTHING, role="kernel", wrong=lambda kernel: kernel, reason="accuracy", where=("ops/*",),
        base=conformance_host.LINEAR,
    )  # fmt: skip
    found = trials.trial(silent)
    assert (found.verdict, found.killers) == ("survived", [])
    assert found.problems == ("no case like ops/* says that accuracy is broken",)


def test_a_fault_that_shows_elsewhere_is_not_killed_for_its_own_reason():
    loud = trials.replace(FAULTS["bias_forgotten"], where=("ops/*/odd",))
    found = trials.trial(loud)
    assert found.verdict == "killed otherwise"
    assert all(" says that accuracy is broken" in problem for problem in found.problems)
