"""The random bits of dropout in numpy's uint64, as SplitMix64 defines them.

Steele, Lea and Flood 2014. Its generator adds a constant to a state and gives out the mixed state.
The stream of a row starts at mix(mix(seed) + row * constant); its outputs decide two columns each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: Words) -> Words:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def bits(seed: Integers, rows: Integers, columns: int) -> Words:
    """32 random bits for each column of each row, [*rows.shape, columns]."""
    # Arrays of one dimension at least: numpy warns where a scalar wraps.
    start = _mix(_mix(np.atleast_1d(seed).astype(np.uint64)) + rows.astype(np.uint64) * _GAMMA)
    turn = np.arange(1, (columns + 1) // 2 + 1, dtype=np.uint64)
    words = _mix(start.reshape(*rows.shape, 1) + turn * _GAMMA)
    halves = np.stack([words & np.uint64(2**32 - 1), words >> np.uint64(32)], -1)
    return halves.reshape(*rows.shape, 2 * len(turn))[..., :columns]


def kept(seed: Integers, rows: Integers, columns: int, p: float) -> NDArray[np.bool_]:
    """Which elements are left where each is dropped with probability p."""
    return bits(seed, rows, columns) >= np.uint64(round(p * 2**32))
