"""What the tests of layers share: the core's own implementations, and an error budget."""

import numpy as np
import pytest

import accel
from accel import testing
from accel.contracts import CONTRACTS, Tolerance
from accel_conformance.measure import exact, shares
from accel_conformance.suite.gradients import ROUNDINGS


@pytest.fixture
def torch_serves():
    """The core's own implementations serve, and nobody minds that rows vary with shape."""
    with testing.installed(testing.fake_backend()), accel.ops.use(exact=False):
        yield


@pytest.fixture
def within_budget():
    """``within_budget(op, got, want)``: each result is as near to float64 as the op's contract asks
    of its dtype, or of a ``dtype`` that was computed in."""

    def check(op, got, want, dtype=None, gradients=False):
        if isinstance(got, tuple):
            for one, other in zip(got, want, strict=True):
                check(op, one, other, dtype, gradients)
            return
        once, deep = CONTRACTS[op].tolerance[dtype or got.dtype], ROUNDINGS if gradients else 1
        allowed = Tolerance(deep * once.rms, deep * once.peak)
        used = shares(got, np.asarray(exact(want)), allowed)
        assert used.within, str(used)

    return check
