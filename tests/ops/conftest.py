"""What the tests of ops share: the ops with nothing installed, and an oracle in float64."""

import math

import numpy as np
import pytest
import torch

import accel
from accel import testing
from accel.contracts import CONTRACTS


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


# -- the oracle: numpy, and nothing of accel or torch ------------------------------------------

_erf = np.vectorize(math.erf, otypes=[np.float64])
_ACT = {
    None: lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "gelu": lambda z: z * 0.5 * (1 + _erf(z / math.sqrt(2))),
    "gelu_tanh": lambda z: z * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z / (1 + np.exp(-z)),
}


def _product(x, w, b):
    return np.einsum("...k,nk->...n", x, w) + (0 if b is None else b)


_EXACT = {
    "linear": lambda x, w, b, act, out: _ACT[act](_product(x, w, b)),
    "gated_linear": lambda x, g, u, bg, bu, act, out: (
        _ACT[act](_product(x, g, bg)) * _product(x, u, bu)
    ),
    "rms_norm": lambda x, w, eps: (
        x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * (1 if w is None else w)
    ),
}


@pytest.fixture
def exact():
    """``exact(op, args)``: the op's result in float64, without accel and without torch."""

    def exact(op, args):
        wide = (a.detach().double().numpy() if isinstance(a, torch.Tensor) else a for a in args)
        return _EXACT[op](*wide)

    return exact


def _rms(values):
    return math.sqrt(np.mean(np.square(values)))


@pytest.fixture
def assert_exact():
    """Hold a result against float64: within the contract's budget for its dtype, and never asked
    for more than the exact value rounded once (a hair more, where fp32 falls beside a tie)."""

    def check(op, got, want):
        assert got.shape == want.shape
        if not want.size:
            return
        allowed, eps = CONTRACTS[op].tolerance[got.dtype], torch.finfo(got.dtype).eps
        error = np.abs(got.detach().double().numpy() - want)
        rounding = np.ldexp(eps / 2, np.frexp(want)[1] - 1) * (1 + 2**-6)
        assert error.max() <= max(allowed.peak * _rms(want), rounding.max())
        assert _rms(error) <= max(allowed.rms * _rms(want), _rms(rounding))

    return check
