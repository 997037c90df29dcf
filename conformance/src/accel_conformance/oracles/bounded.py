"""Numbers that know how wrong an implementation may have them: error bounds from the formulas.

An oracle whose arguments are :class:`Bounded` gives results that are. Each is a sum, and knows the
``magnitude`` of all its terms together, how many roundings one sees on its way into the total
(``count``) and the error the terms came with (``inherited``). In whatever order n terms are added,

    |computed - exact| <= inherited + gamma(n) * size,    gamma(n) = n u / (1 - n u)

with u the unit roundoff of what is computed in (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, 3.1 and 4.2). What is made of the total has the total's error, times its slope.

The worst case of gamma needs n roundings in one direction. Where values are random, so are their
roundings: n of them, uniform in [-u, u], have the standard deviation ``sqrt(n / 3) u`` (Higham and
Mary 2019), and SIGMAS of those, one in 5e8 if normal, stand for n u. It is still more than a kernel
needs: partial sums of terms with both signs are smaller than ``magnitude``. Sums of whole numbers
that are held without rounding have no error at all.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from accel_conformance.oracles import functions
from accel_conformance.oracles.functions import Array

SIGMAS = 6
DIVISION = 2  # roundings: the reciprocal's, and the product's


@dataclass(frozen=True)
class Arithmetic:
    """What is computed in: the unit roundoff, the smallest normal number (what is smaller may be
    zero); the unit roundoff of what may be stored between two steps, where the smallest numbers
    lose up to ``least``. ``random``: values are, and so are roundings."""

    unit: float
    tiny: float
    stored: float
    random: bool = True
    least: float = 0.0

    def gamma(self, count: int) -> float:
        worst = count * self.unit
        bound = min(worst, SIGMAS * math.sqrt(count / 3) * self.unit) if self.random else worst
        return bound / (1 - bound)


@dataclass
class Bounded:
    """See the module. ``whole``: all terms are whole numbers."""

    arithmetic: Arithmetic
    value: Array
    inherited: Array
    magnitude: Array
    count: int = 0
    whole: bool = False

    __array_priority__ = 1.0
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def exactly(cls, arithmetic: Arithmetic, value: Any) -> Bounded:
        """A number that is given, or one that must not be right for what follows to be."""
        value = np.asarray(value, np.float64)
        whole = bool((value == np.rint(value)).all())
        return cls(arithmetic, value, np.zeros_like(value), np.abs(value), 0, whole)

    @property
    def error(self) -> Array:
        """How far from ``value`` a computed total may be."""
        rounding = self.arithmetic.gamma(self.count) * self.magnitude + self._lost
        if self.whole:
            rounding = np.where(self.magnitude <= 1 / self.arithmetic.unit, 0.0, rounding)
        found = self.inherited + rounding
        return np.where(np.isfinite(self.value), np.nan_to_num(found, nan=np.inf), 0.0)

    @property
    def inexact(self) -> bool:
        """Whether any error is left to speak of."""
        return bool(self.count or self.inherited.any())

    @property
    def _lost(self) -> float:
        """What terms too small to be held come to."""
        return 0.0 if self.whole else self.count * self.arithmetic.tiny

    # -- sums keep their terms -----------------------------------------------------------------

    def __add__(self, other: Any) -> Bounded:
        b = self._lifted(other)
        return Bounded(
            self.arithmetic, self.value + b.value, self.inherited + b.inherited,
            self.magnitude + b.magnitude, self.count + b.count + 1, self.whole and b.whole,
        )  # fmt: skip

    __radd__ = __add__

    def __neg__(self) -> Bounded:
        return replace(self, value=-self.value)

    def __sub__(self, other: Any) -> Bounded:
        return self + -self._lifted(other)

    def __rsub__(self, other: Any) -> Bounded:
        return -self + other

    def __mul__(self, other: Any) -> Bounded:
        """Of the one with more terms each is multiplied, by the other's total."""
        a, b = self, self._lifted(other)
        if b.count > a.count:
            a, b = b, a
        factor = np.abs(b.value)
        inherited = (a.inherited + a._lost) * factor + (np.abs(a.value) + a.error) * b.error
        return Bounded(
            a.arithmetic, a.value * b.value, inherited, a.magnitude * factor, a.count + 1,
            a.whole and b.whole,
        )  # fmt: skip

    __rmul__ = __mul__

    def __pow__(self, exponent: int) -> Bounded:
        return math.prod([self] * (exponent - 1), start=self)

    def __truediv__(self, other: Any) -> Bounded:
        b = self._lifted(other)
        value = self.value / b.value
        least = np.maximum(np.abs(b.value) - b.error, 0)
        inherited = (self.inherited + self._lost + np.abs(value) * b.error) / least
        halving = bool((np.frexp(np.abs(b.value))[0] == 0.5).all())
        whole = self.whole and halving and bool((value == np.rint(value)).all())
        magnitude, count = self.magnitude / np.abs(b.value), self.count + DIVISION
        return Bounded(self.arithmetic, value, inherited, magnitude, count, whole)

    def sum(self, axis: Any = None, keepdims: bool = False) -> Bounded:
        total = self.moved(lambda part: part.sum(axis, keepdims=keepdims))
        total.count += self.size // max(total.size, 1)
        return total

    # -- functions of the total ----------------------------------------------------------------

    def through(self, value: Array, error: Array, ulps: float = 0) -> Bounded:
        """A function of the total, with the error that the total's becomes and that of computing
        it, in units of the last place, which are two roundings each."""
        whole = self.whole and not ulps
        return Bounded(
            self.arithmetic, value, np.asarray(error), np.abs(value), round(2 * ulps), whole
        )

    def of(self, function: Any) -> Bounded:
        """One of :data:`functions.FUNCTIONS` of the total."""
        compute, error, ulps = functions.FUNCTIONS[function]
        return self.through(compute(self.value), error(self.value, self.error), ulps)

    def stored(self) -> Bounded:
        """The total, rounded to where it may be stored."""
        unit, size = self.arithmetic.stored, np.abs(self.value) + self.error
        kept = (size == 0) | (self.whole and bool((self.magnitude <= 1 / unit).all()))
        rounding = np.maximum(unit * size, self.arithmetic.least)
        return self.through(self.value, self.error + np.where(kept, 0.0, rounding))

    def max(self, axis: Any = None, keepdims: bool = False, **more: Any) -> Bounded:
        """Exact: it is what the terms of a softmax are shifted by, above and below the line."""
        return Bounded.exactly(self.arithmetic, self.value.max(axis, keepdims=keepdims, **more))

    # -- comparisons are of values -------------------------------------------------------------

    def __eq__(self, other: object) -> Any:
        return self.value == other

    def __gt__(self, other: Any) -> Any:
        return self.value > other

    def __ge__(self, other: Any) -> Any:
        return self.value >= other

    # -- shapes --------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def size(self) -> int:
        return self.value.size

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, at: Any) -> Bounded:
        return self.moved(lambda part: part[at])

    def __setitem__(self, at: Any, other: Any) -> None:
        b = self._lifted(other)
        for name in PARTS:
            getattr(self, name)[at] = getattr(b, name)
        self.count, self.whole = max(self.count, b.count), self.whole and b.whole

    def reshape(self, *shape: int) -> Bounded:
        return self.moved(lambda part: part.reshape(*shape))

    @property
    def T(self) -> Bounded:
        return self.moved(np.transpose)

    def copy(self) -> Bounded:
        return self.moved(np.copy)

    def moved(self, move: Callable[[Array], Any]) -> Bounded:
        """Something linear without products is done to all parts."""
        return replace(self, **{name: np.asarray(move(getattr(self, name))) for name in PARTS})

    def _lifted(self, other: Any) -> Bounded:
        return other if isinstance(other, Bounded) else Bounded.exactly(self.arithmetic, other)

    # -- numpy -----------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options:
            return NotImplemented
        if ufunc in functions.FUNCTIONS:
            return self.of(ufunc)
        if ufunc in _OPERATORS:
            return _OPERATORS[ufunc](*map(self._lifted, inputs))
        return NotImplemented

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        return _CALLS[function](self, *args, **options) if function in _CALLS else NotImplemented


PARTS = ("value", "inherited", "magnitude")


def stored(z: Any) -> Any:
    """A step's result, which a contract allows to be rounded to the dtype of the op's result."""
    return z.stored() if isinstance(z, Bounded) else z


def erf(z: Any) -> Any:
    return z.of(functions.erf) if isinstance(z, Bounded) else functions.erf(z)


def _maximum(a: Bounded, b: Bounded) -> Bounded:
    return a.through(np.maximum(a.value, b.value), np.maximum(a.error, b.error))


_OPERATORS: dict[Any, Callable[..., Any]] = {
    np.add: operator.add,
    np.subtract: operator.sub,
    np.multiply: operator.mul,
    np.true_divide: operator.truediv,
    np.negative: operator.neg,
    np.power: lambda a, b: a ** int(b.value),
    np.maximum: _maximum,
}


def _einsum(one: Bounded, indices: str, a: Any, b: Any, **options: Any) -> Bounded:
    a, b = one._lifted(a), one._lifted(b)

    def over(x: Array, y: Array) -> Array:
        return np.asarray(np.einsum(indices, x, y, optimize=True))

    value, (x, y) = over(a.value, b.value), (np.abs(a.value), np.abs(b.value))
    inherited = np.zeros_like(value)
    if a.inexact:
        inherited = inherited + over(a.error, y)
    if b.inexact:
        inherited = inherited + over(x + a.error, b.error)
    sizes = dict(zip(indices.partition("->")[0].replace(",", ""), a.shape + b.shape))
    terms = math.prod(n for i, n in sizes.items() if i not in indices.partition("->")[2])
    return Bounded(one.arithmetic, value, inherited, over(x, y), terms, a.whole and b.whole)


def _where(one: Bounded, where: Any, a: Any, b: Any) -> Bounded:
    a, b = one._lifted(a), one._lifted(b)
    parts = {name: np.where(where, getattr(a, name), getattr(b, name)) for name in PARTS}
    return replace(a, **parts, count=max(a.count, b.count), whole=a.whole and b.whole)


def _alike(function: Callable[..., Array]) -> Callable[..., Bounded]:
    return lambda one, like, *rest, **options: one._lifted(function(like.value, *rest, **options))


def _elsewhere(function: Callable[..., Array]) -> Callable[..., Bounded]:
    return lambda one, z, *rest, **options: z.moved(lambda part: function(part, *rest, **options))


_CALLS: dict[Any, Callable[..., Any]] = {
    np.einsum: _einsum,
    np.where: _where,
    **{f: _alike(f) for f in (np.zeros_like, np.ones_like, np.full_like)},
    **{f: _elsewhere(f) for f in (np.repeat, np.take_along_axis, np.moveaxis)},
}
