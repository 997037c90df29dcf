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


def _normal(x, eps):
    if not x.size:
        return x
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def _rotated(x, cos, sin, interleaved):
    """Pairs are complex numbers, and turning them is a product."""
    r = cos.shape[-1]
    first = slice(0, 2 * r, 2) if interleaved else slice(0, r)
    second = slice(1, 2 * r, 2) if interleaved else slice(r, 2 * r)
    turned = (x[..., first] + 1j * x[..., second]) * (cos + 1j * sin)[..., None, :]
    y = x.copy()
    y[..., first], y[..., second] = turned.real, turned.imag
    return y


def _attention(q, k, v, spans, causal, scale):
    scale = max(q.shape[2], 1) ** -0.5 if scale is None else scale
    y = np.zeros((*q.shape[:2], v.shape[2]))
    for start, m, first, n in spans.tolist():
        for head in range(q.shape[1]):
            group = head * k.shape[1] // q.shape[1]
            keys, values = (t[first : first + n, group] for t in (k, v))
            scores = q[start : start + m, head] @ keys.T * scale
            hidden = np.triu(np.ones((m, n), bool), n - m + 1) & causal
            e = np.where(hidden, 0, np.exp(scores - scores.max(initial=-np.inf)))
            y[start : start + m, head] = e @ values / np.maximum(e.sum(1, keepdims=True), 1e-300)
    return y


def _logprob(x, ids, w, b, scale, softcap, temperature):
    z = (x if w is None else _product(x, w, b)) * scale
    z = z if softcap is None else softcap * np.tanh(z / softcap)
    p = np.exp(z / temperature - (z / temperature).max(-1, keepdims=True, initial=-1e300))
    p = p / p.sum(-1, keepdims=True)
    chosen = np.take_along_axis(p, ids[..., None], -1)[..., 0]
    return np.log(chosen), -(p * np.log(np.where(p > 0, p, 1))).sum(-1)


_EXACT = {
    "linear": lambda x, w, b, act, out: _ACT[act](_product(x, w, b)),
    "gated_linear": lambda x, g, u, bg, bu, act, out: (
        _ACT[act](_product(x, g, bg)) * _product(x, u, bu)
    ),
    "lora_linear": lambda x, w, lora_a, lora_b, b, scale, out: (
        _product(x, w, b) + scale * _product(_product(x, lora_a, None), lora_b, None)
    ),
    "rms_norm": lambda x, w, eps: (
        x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * (1 if w is None else w)
    ),
    "layer_norm": lambda x, w, b, eps: (
        _normal(x, eps) * (1 if w is None else w) + (0 if b is None else b)
    ),
    "rotary": _rotated,
    "attention": _attention,
    "embedding": lambda ids, w: w[ids],
    "logprob": _logprob,
}


@pytest.fixture
def exact():
    """``exact(op, args)``: the op's result in float64, without accel and without torch."""

    def wide(arg):
        if not isinstance(arg, torch.Tensor):
            return arg
        return (arg.detach().double() if arg.is_floating_point() else arg).numpy()

    def exact(op, args):
        with np.errstate(all="ignore"):
            return _EXACT[op](*map(wide, args))

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
