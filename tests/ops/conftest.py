"""What the tests of ops share: the ops with nothing installed, and an oracle in float64."""

import math

import numpy as np
import pytest
import torch

import accel
from accel import testing
from accel.contracts import CONTRACTS
from accel_conformance.oracles import ORACLES


@pytest.fixture
def torch_serves():
    """The core's own implementations serve, and nobody minds that rows vary with shape."""
    with testing.installed(testing.fake_backend()), accel.ops.use(exact=False):
        yield


@pytest.fixture
def call():
    """``call(op, args)`` with all of the schema's arguments in order."""

    def call(op, args):
        return getattr(accel.ops, op)(**dict(zip(CONTRACTS[op].parameters, args)))

    return call


@pytest.fixture
def exact():
    """``exact(op, args)``: the op's result in float64, by the suite's oracles."""

    def wide(arg):
        if not isinstance(arg, torch.Tensor):
            return arg
        return (arg.detach().double() if arg.is_floating_point() else arg).numpy()

    def exact(op, args):
        with np.errstate(all="ignore"):
            return ORACLES[op].value(*map(wide, args))

    return exact


def _rms(values):
    return math.sqrt(np.mean(np.square(values)))


@pytest.fixture
def assert_exact():
    """Hold a result against float64: within the contract's budget for its dtype, and never asked
    for more than the exact value rounded once (a hair more, where fp32 falls beside a tie).
    Of several results each is held."""

    def check(op, got, want):
        if isinstance(want, tuple):
            for one, other in zip(got, want, strict=True):
                check(op, one, other)
            return
        assert got.shape == want.shape
        found, finite = got.detach().double().numpy(), np.isfinite(want)
        assert np.array_equal(found[~finite], want[~finite])
        found, want = found[finite], want[finite]
        if not want.size:
            return
        allowed, eps = CONTRACTS[op].tolerance[got.dtype], torch.finfo(got.dtype).eps
        error = np.abs(found - want)
        rounding = np.ldexp(eps / 2, np.frexp(want)[1] - 1) * (1 + 2**-6)
        assert error.max() <= max(allowed.peak * _rms(want), rounding.max())
        assert _rms(error) <= max(allowed.rms * _rms(want), _rms(rounding))

    return check
