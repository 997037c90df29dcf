"""quantized_linear in float64. m: a row · n: a column of the result · g: a group of columns k"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_conformance.measure import Array
from accel_conformance.oracles.activation import slope
from accel_conformance.oracles.linear import affine, affine_gradient, linear
from accel_conformance.oracles.summed import Summed

Stored = NDArray[np.integer]


def quantized_linear(
    x: Array, w: Stored, scales: Array, b: Array | None, bits: int, act: str | None,
    out_dtype: Any = None,
) -> Array:  # fmt: skip
    return linear(x, _weight(w, scales, bits), b, act)


def quantized_linear_gradient(
    grad: Array, x: Array, w: Stored, scales: Array, b: Array | None, bits: int, act: str | None,
    out_dtype: Any = None,
) -> tuple[Summed | None, ...]:  # fmt: skip
    weight = _weight(w, scales, bits)
    dz = grad * slope(affine(x, weight, b), act)
    dx, _, db = affine_gradient(dz, x, weight)
    (n, groups), rows = scales.shape, int(np.prod(x.shape[:-1]))
    width = x.shape[-1] // groups
    d_scales = Summed.over(
        "mn,mgk,ngk->ng", dz.reshape(rows, n), x.reshape(rows, groups, width),
        _numbers(w, bits).reshape(n, groups, width),
    )  # fmt: skip
    return dx, None, d_scales, None if b is None else db, None, None, None


def _weight(w: Stored, scales: Array, bits: int) -> Array:
    numbers = _numbers(w, bits)
    return numbers * np.repeat(scales, numbers.shape[1] // scales.shape[1], axis=1)


def _numbers(w: Stored, bits: int) -> Array:
    """What is stored, one number a column: of 4 bits the first of a byte is its remainder by 16."""
    if bits == 8:
        return w.astype(np.float64)
    numbers = np.empty((w.shape[0], 2 * w.shape[1]))
    numbers[:, 0::2], numbers[:, 1::2] = w % 16, w // 16
    return numbers - 8
