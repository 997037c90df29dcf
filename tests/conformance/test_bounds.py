"""Each element's own bound: right sums stay within it, in any order; wrong ones do not."""

import math

import numpy as np
import pytest
import torch
from agreement import assert_agree

from accel.contracts import CONTRACTS
from accel_conformance.case import Evidence
from accel_conformance.expected import _arithmetic, expected
from accel_conformance.faults import FAULTS, plant
from accel_conformance.measure import excess
from accel_conformance.oracles import ORACLES
from accel_conformance.oracles.bounded import Arithmetic, Bounded, erf
from accel_conformance.suite.numerics import componentwise
from accel_conformance.target import each

UNIT, TINY = 2.0**-24, 2.0**-126
WORST = Arithmetic(UNIT, TINY, stored=UNIT, random=False)
RANDOM = Arithmetic(UNIT, TINY, stored=UNIT)


def bounded(values, arithmetic=WORST):
    return Bounded.exactly(arithmetic, np.asarray(values, np.float64))


def singles(*shape, seed=0):
    """Values that fp32 holds, as float64."""
    drawn = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return drawn.astype(np.float64)


@pytest.mark.parametrize("op", CONTRACTS)
def test_a_bound_changes_no_value(op):
    contract = CONTRACTS[op]
    for sample in contract.samples():
        args = sample.make(torch.float32, torch.device("cpu"))
        plain = [a.double().numpy() if is_float(a) else numpy_of(a) for a in args]
        with np.errstate(all="ignore"):
            values = each(ORACLES[op].value(*plain))
        for one, value in zip(expected(contract, args), values, strict=True):
            assert_agree(
                torch.from_numpy(np.asarray(one.value)), torch.from_numpy(np.asarray(value))
            )
            assert one.error.shape == value.shape
            assert not np.isnan(one.error).any()
            assert (one.error >= 0).all()


def is_float(arg):
    return isinstance(arg, torch.Tensor) and arg.is_floating_point()


def numpy_of(arg):
    return arg.numpy() if isinstance(arg, torch.Tensor) else arg


@pytest.mark.parametrize("arithmetic", [WORST, RANDOM])
@pytest.mark.parametrize("order", ["forwards", "backwards", "pairwise", "ascending", "positive"])
def test_a_sum_in_fp32_stays_within_its_bound_in_any_order(arithmetic, order):
    x, w = singles(50, 300), singles(1, 300, seed=1)
    if order == "positive":  # the largest partial sums there can be
        x, w = np.abs(x), np.abs(w)
    wanted = ORACLES["linear"].value(*(bounded(a, arithmetic) for a in (x, w)), None, None)
    terms = x * w  # products of fp32 are exact in float64
    if order == "ascending":
        terms = np.sort(terms)
    rounded = terms.astype(np.float32)
    if order == "pairwise":
        found = rounded.sum(1)
    else:
        found = np.add.accumulate(rounded[:, ::-1] if order == "backwards" else rounded, axis=1)
        found = found[:, -1]
    error = np.abs(found - wanted.value[:, 0])
    assert (error <= wanted.error[:, 0]).all()
    assert (error > 0).any()


def test_roundings_of_random_values_are_bound_by_the_root_of_their_number():
    assert RANDOM.gamma(3) == WORST.gamma(3)
    assert RANDOM.gamma(3000) == pytest.approx(6 * math.sqrt(1000) * UNIT, rel=1e-3)
    assert WORST.gamma(3000) == pytest.approx(3000 * UNIT, rel=1e-3)


FUNCTIONS = {"exp": np.exp, "log": np.log, "sqrt": np.sqrt, "tanh": np.tanh, "erf": erf}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_function_makes_of_an_error_stays_within_the_bound(name):
    function, at = FUNCTIONS[name], np.array([1e-3, 0.1, 1.5, 3.0, 7.0])
    for size in (1e-6, 1e-4):
        off = bounded(at).through(at, np.full_like(at, size))
        found = function(off)
        for side in (-size, size):
            assert (np.abs(function(at + side) - found.value) <= found.error).all()
        # Not idle either: to first order the error is the slope's, beside the function's own.
        slope = np.abs(function(at + size) - function(at - size)) / 2
        assert (found.error <= 1.2 * slope + 5 * UNIT * np.abs(found.value) + 5 * TINY).all()


def test_errors_of_products_and_quotients_hold_at_their_corners():
    a, b = np.array([3.0, -2.0]), np.array([0.5, 7.0])
    one = bounded(a).through(a, np.full(2, 1e-3))
    other = bounded(b).through(b, np.full(2, 1e-2))
    for made, make in ((one * other, np.multiply), (one / other, np.divide)):
        corners = [make(a + i * 1e-3, b + j * 1e-2) for i in (-1, 1) for j in (-1, 1)]
        assert (np.abs(corners - made.value).max(0) <= made.error).all()


def test_whole_numbers_have_no_error_until_they_are_too_large_to_be_held():
    few = ORACLES["linear"].value(bounded([[3.0, 4.0]]), bounded([[5.0, -6.0]]), None, "relu")
    assert few.error.tolist() == [[0.0]]
    many = ORACLES["linear"].value(bounded([[2.0**23, 1.0]]), bounded([[2.0, 1.0]]), None, None)
    assert many.error.item() > 0
    assert (bounded([[1.5]]) + bounded([[1.5]])).error.item() > 0, "not whole"
    assert (bounded([6.0]) / bounded([0.5])).error.item() == 0
    assert (bounded([6.0]) / bounded([3.0])).error.item() > 0, "a reciprocal is rounded"


def test_the_smallest_numbers_lose_more_by_being_stored_than_their_size_says():
    arithmetic = _arithmetic(torch.float16, random=True)
    values = np.array([1.4e-7, 5e-6, 1.0001, 0.0])
    held = torch.from_numpy(values).half().double().numpy()
    stored = bounded(values, arithmetic).stored()
    assert (np.abs(held - values) <= stored.error).all()
    assert stored.error[0] > arithmetic.stored * values[0]
    assert stored.error[3] == 0


def test_excess_is_what_is_left_beyond_one_rounding():
    result = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    half = 2.0**-8
    exactly = np.array([1.0 + half, 2.0])
    assert excess(result, exactly, np.array([0.0, 0.0])).share == 0.0
    later = exactly + np.array([half, 0.0])
    beyond = excess(result, later, np.array([4 * half, 0.0]))
    assert 0.2 < beyond.share <= 0.25
    assert beyond.within
    far = excess(result, exactly + np.array([0.0, 1.0]), np.array([0.0, 0.0]))
    assert not far.within
    assert "element [1] is 2 where 3 was expected" in far.says
    assert not excess(result * math.nan, exactly, np.array([1.0, 1.0])).within
    assert excess(torch.empty(0), np.empty(0), np.empty(0)).share == 0.0


def test_what_overflows_within_the_bound_may_be_infinite():
    result = torch.tensor([math.inf], dtype=torch.float16)
    assert excess(result, np.array([65500.0]), np.array([100.0])).within
    assert not excess(result, np.array([60000.0]), np.array([100.0])).within


@pytest.mark.parametrize(
    ("fault", "dtype"),
    [
        ("accumulated_in_bf16", "float32"),
        ("accumulated_in_bf16", "bfloat16"),
        ("tensor_float_for_float32", "float32"),
        ("accumulated_in_fp16", "bfloat16"),
    ],
)
def test_a_narrow_accumulator_breaks_the_bounds_of_elements(conform, fault, dtype):
    with plant(FAULTS[fault], "reference") as planted:
        _, report = conform(impls=[planted], dtypes=[dtype], cases=["ops/*/even", "ops/*/odd"])
    assert [c["outcome"] for c in report["cases"]] == ["failed"] * 2
    for case in report["cases"]:
        assert "componentwise" in {broken["rule"] for broken in case["broken"]}
        assert case["own_share"] > 1


def test_several_results_are_told_apart():
    args = next(iter(CONTRACTS["add_norm"].samples())).make(torch.float32, torch.device("cpu"))
    wanted = expected(CONTRACTS["add_norm"], args)
    normed, total = (torch.from_numpy(one.value).float() for one in wanted)
    seen = Evidence()
    componentwise(seen, (normed, total + 1), wanted)
    (broken,) = seen.broken
    assert broken.says.startswith("result 1: element [")
