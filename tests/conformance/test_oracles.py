"""The oracles are checked against what they do not use: differences, loops, torch."""

import math

import numpy as np
import pytest
import torch
from agreement import assert_agree, assert_slope, gamma

from accel.contracts import CONTRACTS
from accel_conformance.measure import exact
from accel_conformance.oracles import ORACLES, Summed
from accel_conformance.target import each

SAMPLES = [
    (op, sample)
    for op, contract in CONTRACTS.items()
    for sample in contract.samples()
    if sample.name not in ("long_sum", "long", "many_rows")
]


def drawn(sample):
    args = sample.make(torch.float64, torch.device("cpu"))
    return [np.array(v) if isinstance(v, np.ndarray) else v for v in map(exact, args)]


def test_every_contract_has_an_oracle():
    assert set(ORACLES) == set(CONTRACTS)


@pytest.mark.parametrize(("op", "sample"), SAMPLES, ids=[f"{op}-{s.name}" for op, s in SAMPLES])
def test_values_agree_with_the_contracts_reference_in_float64(op, sample):
    args = sample.make(torch.float64, torch.device("cpu"))
    reference = (
        CONTRACTS[op].reference(*args[:-1], None)
        if "out_dtype" in CONTRACTS[op].parameters
        else CONTRACTS[op].reference(*args)
    )
    value = ORACLES[op].value(*map(exact, args))
    for one, other in zip(each(value), each(reference), strict=True):
        assert_agree(torch.from_numpy(np.asarray(one)), other)


@pytest.mark.parametrize(("op", "sample"), SAMPLES, ids=[f"{op}-{s.name}" for op, s in SAMPLES])
def test_gradients_are_what_differences_say(op, sample):
    """Along one random direction of each argument; nothing flows back from infinities."""
    args, random = drawn(sample), np.random.default_rng(0)
    value = lambda *args: each(ORACLES[op].value(*args))  # noqa: E731
    finite = [np.isfinite(result) for result in value(*args)]
    grads = tuple(random.standard_normal(kept.shape) * kept for kept in finite)
    gradients = ORACLES[op].gradient(grads if len(grads) > 1 else grads[0], *args)
    for i, found in enumerate(gradients):
        if found is None:
            assert not isinstance(args[i], np.ndarray) or args[i].dtype.kind in "iu"
            continue
        way = random.standard_normal(args[i].shape)
        step = 1e-6
        ends = [value(*args[:i], args[i] + side * step * way, *args[i + 1 :]) for side in (1, -1)]
        slope = sum(
            np.sum(grad[kept] * (up[kept] - down[kept])) / (2 * step)
            for grad, kept, up, down in zip(grads, finite, *ends, strict=True)
        )
        scale = np.sum(np.abs(found.spread * way)) + 1e-30
        assert_slope(np.sum(found.total * way), slope * 2 * step, step, size=scale)


def test_linear_is_a_sum_written_as_loops():
    x, w, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(4, 3) - 5, np.ones(4)
    looped = [[sum(x[m, k] * w[n, k] for k in range(3)) + b[n] for n in range(4)] for m in range(2)]
    assert ORACLES["linear"].value(x, w, b, None).tolist() == looped


def test_activations_at_points_that_are_known():
    from accel_conformance.oracles import activation

    one, zero = np.array([1.0]), np.array([0.0])
    known = {"relu": 1.0, "gelu": 0.8413447460685429, "silu": 1 / (1 + math.exp(-1))}
    for name, value in known.items():
        assert activation.activate(one, name) == pytest.approx([value], abs=gamma(torch.float64, 4))
        assert activation.activate(zero, name) == [0.0]
    assert activation.activate(one, "gelu_tanh") == pytest.approx(
        [0.8411919906082768], abs=gamma(torch.float64, 8)
    )
    far = np.array([-800.0, 800.0])
    assert activation.activate(far, "silu").tolist() == [-0.0, 800.0]


def test_a_sum_remembers_the_size_of_what_was_summed():
    cancelled = Summed.of(np.array([3.0, 4.0]), np.array([-3.0, -4.0]))
    assert cancelled.total.tolist() == [0.0, 0.0]
    assert cancelled.unit() == pytest.approx(math.sqrt((18 + 32) / 2))
    assert Summed.over("mk->m", np.ones((1, 4))).unit() == 4.0
    assert Summed.of(np.zeros((0,))).unit() == 0.0
