"""Sums that remember the size of what was summed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel_conformance.measure import Array


@dataclass(frozen=True)
class Summed:
    """``total`` of some addends, and ``spread``, the root of the sum of their squares.

    The spread is the size of a total whose addends do not cancel. What a total has lost by
    cancelling was lost when its addends were rounded, so errors are measured in units of the
    spread.
    """

    total: Array
    spread: Array

    @classmethod
    def over(cls, indices: str, *factors: Array) -> Summed:
        """A sum of products, as ``numpy.einsum`` writes it."""
        squares = np.einsum(indices, *(factor**2 for factor in factors), optimize=True)
        return cls(np.einsum(indices, *factors, optimize=True), np.sqrt(squares))

    @classmethod
    def of(cls, *addends: Array) -> Summed:
        """A sum of arrays."""
        stacked = np.stack(addends)
        return cls(stacked.sum(0), np.sqrt((stacked**2).sum(0)))

    def __add__(self, other: Summed) -> Summed:
        return Summed(self.total + other.total, np.hypot(self.spread, other.spread))

    def reshape(self, *shape: int) -> Summed:
        return Summed(self.total.reshape(shape), self.spread.reshape(shape))

    def unit(self) -> float:
        """RMS of the spread, or of the total where addends pull together."""
        sizes = [float(np.sqrt(np.mean(np.square(a)))) for a in (self.total, self.spread) if a.size]
        return max(sizes, default=0.0)
