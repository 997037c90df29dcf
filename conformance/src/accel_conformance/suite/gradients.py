"""Every op's gradients, where an implementation says they are right for it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from accel.contracts import Tolerance
from accel.contracts.inputs import Draw
from accel_conformance.case import Case, Evidence
from accel_conformance.measure import exact, shares
from accel_conformance.oracles import ORACLES, Summed
from accel_conformance.subject import Subject
from accel_conformance.suite.per_sample import per_sample
from accel_conformance.target import Args, Target, name_of, same_bits

# A gradient is up to four roundings deep where a result is one: the incoming gradient times the
# slope, each of two products, and their sum.
ROUNDINGS = 4


def cases(subject: Subject) -> Iterator[Case]:
    return per_sample("gradients", subject, check, of=lambda target: target.impl.differentiable)


def check(target: Target, sample: str, args: Args, seen: Evidence) -> None:
    """Differentiate the public function and compare with the oracle's sums."""
    if target.declines(seen, args, grad=True):
        return
    leaves = tuple(a.detach().requires_grad_() if isinstance(a, Tensor) else a for a in args)
    named = {
        name: leaf
        for name, leaf in zip(target.contract.parameters, leaves)
        if isinstance(leaf, Tensor)
    }
    result = target.call(leaves)
    seen.ran = target.bound(leaves, grad=True)
    seen.expect("served_by", seen.ran == target.impl.id, f"{seen.ran} served")
    with torch.no_grad():
        silent = target.call(args)
    seen.expect("repeatable", same_bits(result, silent), "recording gradients changed the result")

    grad = Draw(target.op).plain(f"{sample}.grad", tuple(result.shape), result.dtype, target.device)
    found = torch.autograd.grad(result, list(named.values()), grad)
    with np.errstate(all="ignore"):
        expected = ORACLES[target.op].gradient(exact(grad), *map(exact, args))
    budget = _tolerance(target, args[0].dtype)
    sums = [one for one in expected if one is not None]
    for (name, leaf), one, wanted in zip(named.items(), found, sums, strict=True):
        _compare(seen, name, leaf, one, wanted, budget)


def _compare(
    seen: Evidence, name: str, leaf: Tensor, found: Tensor, wanted: Summed, budget: Tolerance
) -> None:
    kind = (found.dtype, found.shape) == (leaf.dtype, leaf.shape)
    says = f"of {name} is {name_of(found.dtype)}{list(found.shape)}, not {list(leaf.shape)}"
    if seen.expect("gradient", kind, says):
        used = shares(found, wanted.total, budget, wanted.unit())
        seen.used(used.rms, used.peak)
        seen.expect("gradient", used.within, f"of {name}: {used}")


def _tolerance(target: Target, dtype: torch.dtype) -> Tolerance:
    once = target.contract.tolerance[dtype]
    return Tolerance(rms=ROUNDINGS * once.rms, peak=ROUNDINGS * once.peak)
