"""What an implementation may know and touch: the values its arguments have at the call, and nothing
beside, in memory or in torch.

One case each per implementation, in one dtype: none depends on the values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from accel.contracts import Tolerance
from accel_conformance.case import Case, Evidence
from accel_conformance.measure import exact, shares
from accel_conformance.subject import Subject
from accel_conformance.suite.numerics import labels, tolerance
from accel_conformance.suite.per_sample import has_elements
from accel_conformance.target import Args, Results, Target, name_of, tensors

BESIDE = 16  # elements on either side of a row: a vector


def cases(subject: Subject) -> Iterator[Case]:
    for target in subject.targets:
        for dtype in subject.dtypes(target)[:1]:
            for check in (values_replaced, nan_beside, torch_undisturbed):
                yield Case(
                    f"guards/{target.op}/{target.impl.id}/{name_of(dtype)}/{check.__name__}",
                    partial(_run, check, target, dtype),
                    target.op,
                    target.impl.id,
                    name_of(dtype),
                )


def _run(check, target: Target, dtype: torch.dtype, seen: Evidence) -> None:
    samples = (sample.make(dtype, target.device) for sample in target.contract.samples())
    args = next(args for args in samples if has_elements(target.contract, args))
    seen.input = target.told(args)
    with target.alone():
        if not target.declines(seen, args):
            check(target, args, seen)
            seen.ran = target.bound(args)


def values_replaced(target: Target, args: Args, seen: Evidence) -> None:
    """Other values in the same memory give what they give in memory of their own. Those written
    through ``data``, as optimizers and sharding do, no version counts."""
    target.call(args)
    fresh = []  # kept, or the second would lie where the first lay, which may be known by its place
    for place in (lambda tensor: tensor, lambda tensor: tensor.data):
        for tensor in map(place, filter(_holds_values, tensors(args))):
            tensor.copy_(tensor.flatten().roll(1).reshape(tensor.shape))
        found = target.call(args)
        fresh.append(tuple(a.clone() if isinstance(a, Tensor) else a for a in args))
        wanted = target.call(fresh[-1])
        _agree(seen, target, "current", found, wanted, args)


def nan_beside(target: Target, args: Args, seen: Evidence) -> None:
    """NaN between the rows of every argument changes nothing."""
    among = {beside: tuple(_among(arg, beside) for arg in args) for beside in (0.0, math.nan)}
    if target.declines(seen, among[0.0]):
        return
    wanted, found = (target.call(arranged) for arranged in among.values())
    _agree(seen, target, "guarded", found, wanted, args)


def torch_undisturbed(target: Target, args: Args, seen: Evidence) -> None:
    """What others in the process rely on is left as it is."""
    before = _shared_state()
    target.call(args)
    after = _shared_state()
    for what, was in before.items():
        now = after[what]
        seen.expect("undisturbed", was == now, f"{what}: {was!r:.40} before, {now!r:.40} after")


def _shared_state() -> dict[str, object]:
    return {
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "recording gradients": torch.is_grad_enabled(),
        "state of the random numbers": bytes(torch.get_rng_state().numpy()),
    }


def _agree(
    seen: Evidence, target: Target, rule: str, found: Results, wanted: Results, args: Args
) -> None:
    """As close as two right results are: each within the contract's tolerance of float64."""
    for which, one, other in zip(labels(found), found, wanted, strict=True):
        once = tolerance(target.contract, target.contract.key(args).dtype, one.dtype)
        twice = Tolerance(rms=2 * once.rms, peak=2 * once.peak)
        used = shares(one, exact(other), twice, roundings=2)
        seen.expect(rule, used.within, f"{which}{used}")


def _holds_values(tensor: Tensor) -> bool:
    """Numbers, plain or quantised, as opposed to ids, ends and spans."""
    return tensor.is_floating_point() or tensor.dtype in (torch.int8, torch.uint8)


def _among(arg, beside: float):
    """A floating point tensor among other values, in front of its rows and behind them."""
    if not isinstance(arg, Tensor) or not arg.is_floating_point() or not arg.dim():
        return arg
    longer = (*arg.shape[:-1], arg.shape[-1] + 2 * BESIDE)
    rows = arg.new_full(longer, beside)[..., BESIDE:-BESIDE]
    return rows.copy_(arg)
