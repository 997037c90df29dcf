"""The measure of an error: exact where it can be, never below half the last place, and nothing
hidden by NaN, infinity, zero or emptiness."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel.contracts import Tolerance
from accel_conformance.measure import FAR, exact, shares

TIGHT = Tolerance(rms=0.0, peak=0.0)
LOOSE = Tolerance(rms=0.1, peak=1.0)
HALVES = [torch.float16, torch.bfloat16, torch.float32]


def wanted(*values):
    return np.array(values, dtype=np.float64)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float64])
def test_conversion_is_exact(dtype):
    facts = torch.finfo(dtype)
    values = torch.tensor([facts.tiny, facts.max, 1 + facts.eps, -0.0], dtype=dtype)
    assert torch.equal(torch.from_numpy(exact(values)).to(dtype), values)
    assert exact("silu") == "silu"


@given(st.lists(st.floats(-3e4, 3e4), min_size=1), st.sampled_from(HALVES))
def test_rounding_once_is_always_within(values, dtype):
    expected = np.array(values)
    assert shares(torch.tensor(values, dtype=torch.float64).to(dtype), expected, TIGHT).within


@pytest.mark.parametrize("dtype", HALVES)
def test_a_place_off_is_not_within_a_budget_of_nothing(dtype):
    found = torch.tensor([1 + torch.finfo(dtype).eps, 0.5], dtype=dtype)
    used = shares(found, wanted(1.0, 0.5), TIGHT)
    assert not used.within
    assert used.peak == pytest.approx(2, rel=0.05)


def test_shares_are_in_units_of_the_results_rms():
    expected = wanted(*[10.0] * 100)
    found = torch.tensor(expected)
    found[7] += 1.0
    used = shares(found, expected, LOOSE)
    assert used.peak == pytest.approx(0.1)
    assert used.rms == pytest.approx(0.1)
    assert shares(found, expected, LOOSE, unit=1.0).peak == pytest.approx(1.0)


def test_zero_must_be_met_exactly():
    zero = wanted(0.0, 0.0)
    assert shares(torch.zeros(2), zero, LOOSE).within
    assert shares(torch.tensor([0.0, 1e-30]), zero, LOOSE).peak == FAR


def test_nothing_to_compare_uses_nothing():
    used = shares(torch.zeros(0, 3), np.zeros((0, 3)), TIGHT)
    assert (used.rms, used.peak, used.within) == (0.0, 0.0, True)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan), (1.0, np.inf), (-np.inf, np.inf),
        (np.nan, np.inf), (np.inf, np.nan),
    ],
)  # fmt: skip
def test_nan_and_infinity_must_be_where_they_are_expected(found, expected):
    used = shares(torch.tensor([1.0, found]), wanted(1.0, expected), LOOSE)
    assert not used.within
    assert "1 of 2 elements differ in NaN or infinity, the first at [1]" in str(used)


def test_nan_and_infinity_in_place_are_right():
    values = wanted(np.nan, np.inf, -np.inf, 1.0)
    assert shares(torch.tensor(values), values, TIGHT).within


def test_what_the_dtype_cannot_hold_becomes_infinity():
    found = torch.tensor([torch.inf, -torch.inf, 1.0], dtype=torch.float16)
    assert shares(found, wanted(65520.0, -1e9, 1.0), TIGHT).within
    assert not shares(found, wanted(65504.0, -1e9, 1.0), TIGHT).within
