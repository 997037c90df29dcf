"""What an op's results must be, and how far from it each element may lie.

The oracles' formulas say both (see oracles/bounded.py). Whoever computes an op is compared with the
same numbers, so those of the latest inputs are kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel.contracts import Contract
from accel_conformance.measure import exact
from accel_conformance.oracles import ORACLES
from accel_conformance.oracles.bounded import Arithmetic, Bounded
from accel_conformance.target import Args, each

KEPT = 256  # inputs: an op's samples in all its dtypes


def expected(contract: Contract, args: Args, *, random: bool = True) -> tuple[Bounded, ...]:
    """One for each result. ``random``: the values are, so roundings may be taken to be."""
    arithmetic = _arithmetic(contract.key(args).dtype, random)
    return _results(_Call(contract.name, arithmetic, _digest(args), args))


def _arithmetic(dtype: torch.dtype, random: bool) -> Arithmetic:
    """Ops compute in fp32 at least, and may store in their own dtype what lies between two steps.
    Beside float64 the oracle is itself a computation in float64: together they may be as far apart
    as if each rounding were two."""
    working = torch.finfo(torch.promote_types(dtype, torch.float32))
    roundings = 2 if working.dtype == "float64" else 1
    storing = torch.finfo(dtype)
    unit, stored = (roundings * facts.eps / 2 for facts in (working, storing))
    least = max(storing.tiny * stored, working.tiny)  # of numbers below the normal ones
    return Arithmetic(unit, working.tiny, stored, random, least)


@dataclass(frozen=True)
class _Call:
    """Equal to another of the same op with arguments of equal bits, wherever those lie."""

    op: str
    arithmetic: Arithmetic
    digest: bytes
    args: Args = field(compare=False)


@lru_cache(maxsize=KEPT)
def _results(call: _Call) -> tuple[Bounded, ...]:
    with np.errstate(all="ignore"):
        lifted = (_lifted(call.arithmetic, arg) for arg in call.args)
        return each(ORACLES[call.op].value(*lifted))


def _lifted(arithmetic: Arithmetic, arg: Any) -> Any:
    if isinstance(arg, Tensor) and arg.is_floating_point():
        return Bounded.exactly(arithmetic, exact(arg))
    return exact(arg)


def _digest(args: Args) -> bytes:
    found = hashlib.blake2b()
    for arg in args:
        found.update(repr(getattr(arg, "dtype", arg)).encode())
        if isinstance(arg, Tensor):
            values = np.ascontiguousarray(exact(arg))
            found.update(repr(values.shape).encode())
            found.update(values.data)
    return found.digest()
