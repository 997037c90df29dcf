"""Every op's gradients, where an implementation says they are right for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel.contracts import Tolerance
from accel.contracts.inputs import LAYOUTS, Draw
from accel_conformance.case import Case, Evidence
from accel_conformance.measure import exact, shares
from accel_conformance.oracles import ORACLES, Summed
from accel_conformance.subject import Subject
from accel_conformance.suite.per_sample import per_sample
from accel_conformance.target import Args, Results, Target, name_of, same_bits

# A gradient is up to four roundings deep where a result is one: the incoming gradient times the
# slope, each of two products, and their sum.
ROUNDINGS = 4
FREEZING = torch.float32  # the dtype in which each argument is differentiated alone as well


def cases(subject: Subject) -> Iterator[Case]:
    return per_sample(
        "gradients", subject, check, required=False, of=lambda target: target.impl.differentiable
    )


def check(target: Target, sample: str, args: Args, seen: Evidence) -> None:
    """Differentiate the public function and compare with the oracle's sums."""
    if target.declines(seen, args, grad=True):
        return
    leaves = with_leaves(args)
    results = target.call(leaves)
    seen.ran = target.bound(leaves, grad=True)
    seen.expect("served_by", seen.ran == target.impl.id, f"{seen.ran} served")
    with torch.no_grad():
        silent = target.call(args)
    seen.expect("repeatable", same_bits(results, silent), "recording gradients changed the result")
    views = any(result._is_view() for result in results)
    seen.expect(
        "fresh", not views, "a recorded result is a view, which autograd lets nobody change"
    )
    grads = incoming(target, sample, results)
    found = torch.autograd.grad(results, list(filter(floats, leaves)), grads)
    judge(seen, target, args, grads, found)
    _repeated(seen, target, leaves, grads, found)
    _frozen(seen, target, args, grads, found)


def with_leaves(args: Args) -> Args:
    """The arguments, of floating point ones leaves that want gradients."""
    return tuple(a.detach().requires_grad_() if floats(a) else a for a in args)


def incoming(target: Target, sample: str, results: Results) -> Results:
    """The gradients that reach the results."""
    return tuple(_incoming(target, sample, i, result) for i, result in enumerate(results))


def judge(
    seen: Evidence, target: Target, args: Args, grads: Results, found: Results,
    rule: str = "gradient",
) -> None:  # fmt: skip
    """Compare gradients of the floating point arguments with the oracle's, under a rule."""
    given = tuple(map(exact, grads))
    with np.errstate(all="ignore"):
        expected = ORACLES[target.op].gradient(
            given if len(given) > 1 else given[0], *map(exact, args)
        )
    budget = _tolerance(target, target.contract.key(args).dtype)
    named = [pair for pair in zip(target.contract.parameters, args) if floats(pair[1])]
    sums = [one for one in expected if one is not None]
    for (name, leaf), one, wanted in zip(named, found, sums, strict=True):
        _compare(seen, rule, name, leaf, one, wanted, budget)


def _repeated(seen: Evidence, target: Target, leaves: Args, grads: Results, found: Results) -> None:
    """Gradients of the same call have the same bits: sums do not take their terms as they come."""
    if target.contract.key(leaves).dtype is FREEZING:
        again = torch.autograd.grad(target.call(leaves), list(filter(floats, leaves)), grads)
        seen.expect("repeatable", same_bits(found, again), "gradients differ from call to call")


def _frozen(seen: Evidence, target: Target, args: Args, grads: Results, together: Results) -> None:
    """The gradient of one argument does not depend on whether others need theirs."""
    budget = _tolerance(target, target.contract.key(args).dtype)
    twice = Tolerance(rms=2 * budget.rms, peak=2 * budget.peak)
    of_all = iter(together)
    for at, name in enumerate(target.contract.parameters):
        if not floats(args[at]):
            continue
        wanted, leaf = next(of_all), args[at].detach().requires_grad_()
        if leaf.dtype is FREEZING:
            results = target.call((*args[:at], leaf, *args[at + 1 :]))
            (found,) = torch.autograd.grad(results, [leaf], grads)
            used = shares(found, np.asarray(exact(wanted)), twice, roundings=2 * ROUNDINGS)
            seen.expect("gradient", used.within, f"of {name} alone, beside that of all: {used}")


def floats(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point()


def _incoming(target: Target, sample: str, i: int, result: Tensor) -> Tensor:
    """The gradient that reaches the i-th result, laid out as a sample of a layout is."""
    draw, name = Draw(target.op), f"{sample}.grad{i or ''}"
    layout = next((layout for layout in LAYOUTS if f"_{layout}" in sample), "plain")
    return draw.rows(name, tuple(result.shape), result.dtype, target.device, layout)


def _compare(
    seen: Evidence, rule: str, name: str, leaf: Tensor, found: Tensor, wanted: Summed,
    budget: Tolerance,
) -> None:  # fmt: skip
    kind = (found.dtype, found.shape) == (leaf.dtype, leaf.shape)
    says = (
        f"gradient of {name} is {name_of(found.dtype)}{list(found.shape)}, not {list(leaf.shape)}"
    )
    if seen.expect(rule, kind, says):
        used = shares(found, wanted.total, budget, wanted.unit(), ROUNDINGS)
        seen.used(used.rms, used.peak)
        seen.expect(rule, used.within, f"gradient of {name}: {used}")


def _tolerance(target: Target, dtype: torch.dtype) -> Tolerance:
    once = target.contract.tolerance[dtype]
    return Tolerance(rms=ROUNDINGS * once.rms, peak=ROUNDINGS * once.peak)
