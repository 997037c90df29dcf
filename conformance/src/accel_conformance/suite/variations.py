"""How a sample can be varied without leaving the contract: other rows, values, layouts, storage.

A variation is said in words, and is made of a sample again from these alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from accel.contracts import CONTRACTS, Contract, Sample
from accel_conformance.suite import regroup
from accel_conformance.suite.per_sample import outlines
from accel_conformance.target import Args

T = TypeVar("T")

KINDS = ("values", "layout", "rows", "storage")
MIXED = KINDS[:3]  # values of one argument for another are enough

EVERY = "every argument"

BITS = 6  # of every choice, so that a simpler one leaves the next in place
ROWS = (1, 3, 0, 7, 33)


def _times(power: int) -> Callable[[Tensor], Tensor]:
    """By two to a part of the largest exponent of the dtype: a cube of it still is a number."""
    return lambda t: t * 2.0 ** (math.log2(torch.finfo(t.dtype).max) // 3 * power)


def _cancelling(t: Tensor) -> Tensor:
    """The second half of each row is the first with the other sign."""
    half = t.shape[-1] // 2
    return torch.cat([t[..., :half], -t[..., :half], t[..., 2 * half :]], -1)


def _signed_zeros(t: Tensor) -> Tensor:
    return torch.copysign(torch.zeros_like(t), t)


def _mostly_zeros(t: Tensor) -> Tensor:
    return torch.where(t > 1, t, torch.zeros_like(t))


def _constant_rows(t: Tensor) -> Tensor:
    return t[..., :1].expand(t.shape)


VALUES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "large": _times(1),
    "zeros": torch.zeros_like,
    "zeros of both signs": _signed_zeros,
    "mostly zeros": _mostly_zeros,
    "constant rows": _constant_rows,
    "cancelling pairs": _cancelling,
    "tiny": _times(-1),
    "denormal": lambda t: t * torch.finfo(t.dtype).tiny,
}


def _gap(t: Tensor, *shape: int) -> Tensor:
    """What nobody reads is NaN."""
    return t.new_full(shape, math.nan)


def _offset(t: Tensor) -> Tensor:
    return _gap(t, t.numel() + 1)[1:].view(t.shape).copy_(t)


def _transposed(t: Tensor) -> Tensor:
    order = range(t.dim() - 1, -1, -1)
    return t.permute(*order).contiguous().permute(*order)


def _strided(t: Tensor) -> Tensor:
    return _gap(t, *t.shape[:-1], 2 * t.shape[-1])[..., ::2].copy_(t)


def _expanded(t: Tensor) -> Tensor:
    return t[:1].expand(t.shape)


LAYOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "one element into its storage": _offset,
    "transposed": _transposed,
    "every second element": _strided,
    "its first row everywhere": _expanded,
}


@dataclass(frozen=True)
class Variation:
    """``rows``: how many instead of the sample's. ``values``, ``layout``: (argument, which).
    ``storage``: (argument, the one whose storage and values it has)."""

    sample: Sample
    rows: int | None = None
    values: tuple[str, str] | None = None
    layout: tuple[str, str] | None = None
    storage: tuple[str, str] | None = None

    def make(self, contract: Contract, dtype: torch.dtype, device: torch.device) -> Args:
        args = self.sample.make(dtype, device)
        if self.rows is not None:
            args = regroup.new_rows(contract, args, self.rows, self.sample.name)
        named = dict(zip(contract.parameters, args))
        for drawn, table in ((self.values, VALUES), (self.layout, LAYOUTS)):
            if drawn:
                name, which = drawn
                for one in _floats(named) if name == EVERY else [name]:
                    named[one] = table[which](named[one])
        if self.storage:
            _share(named, *self.storage)
        return tuple(named.values())

    def __str__(self) -> str:
        said = [f"sample {self.sample.name}"]
        if self.rows is not None:
            said.append(f"{self.rows} rows")
        said += [f"{name} {which}" for name, which in filter(None, (self.values, self.layout))]
        if self.storage:
            said.append("{} in the storage of {}".format(*self.storage))
        return ", ".join(said)


@st.composite
def variations(draw: st.DrawFn, op: str, kind: str) -> Variation:
    """Of samples that can be varied in this way, and perhaps in another as well. What comes first
    in each list is simplest: a failure is shrunk towards it.

    Drawn in booleans alone: into whole numbers hypothesis mixes constants of the modules that
    happen to be loaded, and a seed would mean something else in another process.
    """

    def one_of(options: Sequence[T]) -> T:
        return options[sum(draw(st.booleans()) << bit for bit in range(BITS)) % len(options)]

    sample = one_of([sample for sample, ways in _ways(op) if ways[kind]])
    ways = next(ways for one, ways in _ways(op) if one is sample)
    chosen = {kind: one_of(ways[kind])}
    others = [other for other in MIXED if ways[other] and other != kind]
    if kind in MIXED and others and draw(st.booleans()):
        other = one_of(others)
        chosen[other] = one_of(ways[other])
    return Variation(sample, **chosen)


def kinds(op: str) -> list[str]:
    """The ways in which some sample of an op can be varied."""
    return [kind for kind in KINDS if any(ways[kind] for _, ways in _ways(op))]


@cache
def _ways(op: str) -> list[tuple[Sample, dict[str, list[Any]]]]:
    return [
        (sample, _ways_of(CONTRACTS[op], args)) for sample, args in outlines(CONTRACTS[op].samples)
    ]


def _ways_of(contract: Contract, args: Args) -> dict[str, list[Any]]:
    named = dict(zip(contract.parameters, args))
    floats = _floats(named)
    return {
        "values": list(itertools.product(floats, VALUES)),
        "layout": list(itertools.product([EVERY, *floats], LAYOUTS)) if floats else [],
        "rows": list(ROWS) if regroup.countable(contract, args) else [],
        "storage": [(a, b) for a in floats for b in floats if a != b and _fits(named[a], named[b])],
    }


def _floats(named: Mapping[str, Any]) -> list[str]:
    return [name for name, arg in named.items() if _varied(arg)]


def _varied(arg: Any) -> bool:
    tensor = isinstance(arg, Tensor) and arg.is_floating_point()
    return tensor and arg.dim() > 0 and arg.numel() > 0


def _fits(one: Tensor, other: Tensor) -> bool:
    return one.dtype is other.dtype and one.numel() <= other.numel()


def _share(named: dict[str, Any], name: str, other: str) -> None:
    flat = named[other].reshape(-1).clone()
    named[other] = flat.view(named[other].shape)
    named[name] = flat[: named[name].numel()].view(named[name].shape)
