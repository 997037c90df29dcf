"""Functions of numbers with an error: what it becomes, and what computing them adds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

erf = np.vectorize(math.erf, otypes=[np.float64])


def erf_error(v: Array, e: Array) -> Array:
    return e * np.exp(-(np.maximum(np.abs(v) - e, 0) ** 2)) * 2 / math.sqrt(math.pi)


def _exp_error(v: Array, e: Array) -> Array:
    found = np.exp(v)
    return np.where(found == 0, 0.0, found * np.expm1(e))


def _sqrt_error(v: Array, e: Array) -> Array:
    root = np.sqrt(v)
    return np.maximum(np.sqrt(v + e) - root, root - np.sqrt(np.maximum(v - e, 0)))


# name -> the function, what the error e of v becomes at most, ulps of computing it: those that
# CUDA's and SLEEF's functions in single precision state, and rsqrt in place of sqrt.
FUNCTIONS: dict[Any, tuple[Callable[[Array], Array], Callable[[Array, Array], Array], float]] = {
    np.exp: (np.exp, _exp_error, 2),
    np.log: (np.log, lambda v, e: -np.log1p(-np.minimum(e / v, 1)), 2),
    np.sqrt: (np.sqrt, _sqrt_error, 2),
    np.tanh: (np.tanh, lambda v, e: e / np.cosh(np.maximum(np.abs(v) - e, 0)) ** 2, 2),
    np.cosh: (np.cosh, lambda v, e: np.cosh(np.abs(v) + e) - np.cosh(v), 2),
    np.absolute: (np.abs, lambda v, e: e, 0),
    erf: (erf, erf_error, 2),
}
