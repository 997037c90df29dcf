"""Activations and their derivatives in float64, from their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from accel_conformance.measure import Array
from accel_conformance.oracles.bounded import erf


def _logistic(z: Array) -> Array:
    # exp of a negative number only, so that nothing overflows.
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, e) / (1 + e)


def _tanh_inner(z: Array) -> Array:
    return math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)


def relu(z: Array) -> Array:
    return np.maximum(z, 0)


def relu_slope(z: Array) -> Array:
    return np.where(z > 0, 1.0, 0.0)


def gelu(z: Array) -> Array:
    """z times the normal distribution function."""
    return z * (1 + erf(z / math.sqrt(2))) / 2


def gelu_slope(z: Array) -> Array:
    distribution = (1 + erf(z / math.sqrt(2))) / 2
    return distribution + z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def gelu_tanh(z: Array) -> Array:
    return z * (1 + np.tanh(_tanh_inner(z))) / 2


def gelu_tanh_slope(z: Array) -> Array:
    inner = _tanh_inner(z)
    inner_slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    return (1 + np.tanh(inner)) / 2 + z * inner_slope / np.cosh(inner) ** 2 / 2


def silu(z: Array) -> Array:
    return z * _logistic(z)


def silu_slope(z: Array) -> Array:
    s = _logistic(z)
    return s + z * s * _logistic(-z)


# name -> (function, derivative)
_ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "relu": (relu, relu_slope),
    "gelu": (gelu, gelu_slope),
    "gelu_tanh": (gelu_tanh, gelu_tanh_slope),
    "silu": (silu, silu_slope),
}


def activate(z: Array, act: str | None) -> Array:
    return z if act is None else _ACTIVATIONS[act][0](z)


def slope(z: Array, act: str | None) -> Array:
    return np.ones_like(z) if act is None else _ACTIVATIONS[act][1](z)
