"""How far a result is from float64, as shares of an error budget.

Errors are measured in units of the expected result's RMS: a result is as right as its largest
elements need, and an element that cancels to nearly zero is not held to digits it cannot have.

No budget is smaller than half the last place of what it is for, as often as it may be rounded: the
exact result, rounded once to its dtype, is right, however few its elements or long their tails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from accel.contracts import Tolerance

Array = NDArray[np.float64]

# Stands for "more than can be said" where a budget of zero is overdrawn: JSON has no infinity.
FAR = 1e9

# Over half the last place: what was computed in fp32 may fall on the other side of a tie.
SLACK = 1 + 2**-6


@dataclass(frozen=True)
class Shares:
    """Parts of the budgets used (1 is all), and what was compared elsewhere than by size."""

    rms: float
    peak: float
    misplaced: str = ""

    @property
    def within(self) -> bool:
        return self.rms <= 1 and self.peak <= 1 and not self.misplaced

    def __str__(self) -> str:
        return self.misplaced or (
            f"error is {self.rms:.3g} of the rms budget and {self.peak:.3g} of the peak budget"
        )


def exact(value: object) -> object:
    """A floating point tensor as a float64 array, without rounding, another as an array of its own
    dtype; anything else as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    here = value.detach().cpu()
    return (here.to(torch.float64) if here.is_floating_point() else here).numpy()


def shares(
    result: torch.Tensor, expected: Array, tolerance: Tolerance, unit: float | None = None,
    roundings: int = 1,
) -> Shares:  # fmt: skip
    """The shares of ``tolerance`` that ``result`` uses.

    ``unit`` replaces the RMS of the finite expected elements. Infinities (also those that
    ``expected`` becomes in the result's dtype) and NaN must be where they are expected. A result
    without elements uses nothing; one that is zero throughout must be met exactly.
    """
    found = np.asarray(exact(result))
    expected = _overflowed(expected, result.dtype)
    finite = np.isfinite(expected)
    misplaced = _misplaced(found, expected, finite)
    if misplaced or not finite.any():
        return Shares(FAR if misplaced else 0.0, FAR if misplaced else 0.0, misplaced)
    wanted = expected[finite]
    error = np.abs(found[finite] - wanted)
    rounding = roundings * _half_place(wanted, result.dtype)
    unit = _rms(wanted) if unit is None else unit
    return Shares(
        _share(_rms(error), max(tolerance.rms * unit, _rms(rounding))),
        _share(float(error.max()), max(tolerance.peak * unit, float(rounding.max()))),
    )


@dataclass(frozen=True)
class Excess:
    """Where a result leaves most of its elements' own bounds behind: ``share`` of what computing
    the element may cost, beyond rounding it to the result's dtype (1 is all)."""

    share: float
    says: str = ""

    @property
    def within(self) -> bool:
        return self.share <= 1


def excess(result: torch.Tensor, expected: Array, error: Array) -> Excess:
    """Every finite element of ``result`` held to its own bound on the ``error`` of computing it,
    and one rounding. Elements that the bound leaves on either side of the largest number of the
    result's dtype may be it or infinite."""
    found = np.asarray(exact(result))
    with np.errstate(all="ignore"):
        reach = np.abs(expected) + error
        held = np.isfinite(expected) & (reach <= torch.finfo(result.dtype).max)
        rounding = np.where(held, _half_place(np.where(held, reach, 0.0), result.dtype), 0.0)
        off = np.where(held, np.abs(found - expected), 0.0)
        beyond = np.where(off > rounding, off - rounding, 0.0)
        shares = np.where(beyond == 0, 0.0, np.minimum(beyond / error, FAR))
    shares = np.where(np.isnan(off), FAR, shares)
    if not shares.size:
        return Excess(0.0)
    at = tuple(int(i) for i in np.unravel_index(int(shares.argmax()), shares.shape))
    return Excess(
        float(shares[at]),
        f"element {list(at)} is {found[at]:.9g} where {expected[at]:.9g} was expected: it may be "
        f"off by {error[at]:.3g} and a rounding of {rounding[at]:.3g}, and is by {off[at]:.3g}",
    )


def _half_place(values: Array, dtype: torch.dtype) -> Array:
    """The most that rounding to ``dtype`` can move each value, nothing for zero."""
    facts = torch.finfo(dtype)
    _, exponents = np.frexp(values)  # |value| in [2**(e-1), 2**e)
    places = np.ldexp(facts.eps, exponents - 1)
    return np.where(values == 0, 0.0, np.maximum(places, facts.tiny * facts.eps) / 2) * SLACK


def _overflowed(expected: Array, dtype: torch.dtype) -> Array:
    """``expected`` with what ``dtype`` cannot hold as infinity: beyond its largest value by half
    the last place."""
    facts = torch.finfo(dtype)
    limit = facts.max * (1 + facts.eps / 4)
    return np.where(np.abs(expected) > limit, np.copysign(np.inf, expected), expected)


def _misplaced(found: Array, expected: Array, finite: NDArray[np.bool_]) -> str:
    """Where NaN or infinity is missing or too many, in words; empty if all is in place."""
    wrong = np.where(
        finite,
        ~np.isfinite(found),
        (found != expected) & ~(np.isnan(found) & np.isnan(expected)),
    )
    if not wrong.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{int(wrong.sum())} of {wrong.size} elements differ in NaN or infinity, the first at "
        f"{list(at)}: {found[at]} where {expected[at]:.6g} was expected"
    )


def _rms(values: Array) -> float:
    # Scaled, so that squares neither overflow nor vanish.
    largest = float(np.abs(values).max())
    return largest * float(np.sqrt(np.mean(np.square(values / largest)))) if largest else 0.0


def _share(error: float, budget: float) -> float:
    if error == 0:
        return 0.0
    return min(error / budget, FAR) if budget else FAR
