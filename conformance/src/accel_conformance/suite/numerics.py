"""Every op's result: right, made by who was asked, new, repeatable, and nothing else touched."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from accel.contracts import Contract, Tolerance
from accel_conformance.case import Case, Evidence
from accel_conformance.expected import expected
from accel_conformance.measure import excess, shares
from accel_conformance.oracles.bounded import Bounded
from accel_conformance.subject import Subject
from accel_conformance.suite.per_sample import per_sample
from accel_conformance.target import (
    Args,
    Results,
    Target,
    Watch,
    each,
    name_of,
    poison,
    same_bits,
    storage_bits,
    tensors,
)

CANARY = 7.0  # which every dtype has


def cases(subject: Subject) -> Iterator[Case]:
    return per_sample("ops", subject, check)


def check(target: Target, sample: str, args: Args, seen: Evidence) -> None:
    """Call three times, the last under a dispatch mode, and look at everything around."""
    if target.declines(seen, args):
        return
    wanted = each(target.contract.fake(*args))
    before = [storage_bits(tensor) for tensor in tensors(args)]
    poison(wanted, math.nan)
    first = target.call(args)
    kept = tuple(result.clone() for result in first)
    poison(wanted, -7.0)
    second = target.call(args)
    with Watch() as watch:
        watched = target.call(args)

    _served_by(seen, target, args, watch)
    inputs_kept(seen, target, args, before)
    _fresh(seen, target, args, first, second)
    _repeatable(seen, kept, first, second, watched)
    if target.takes_out():
        _placed(seen, target, args, *kept)
    if promised(seen, kept, wanted):
        accuracy(seen, target.contract, kept, args)


def accuracy(
    seen: Evidence, contract: Contract, results: Results, args: Args, rule: str = "accuracy"
) -> None:
    """All elements together within the contract's tolerance, and each within its own bound. As
    ``rule``, if another is given than that of the tolerance."""
    wanted = expected(contract, args)
    for which, result, one in zip(labels(results), results, wanted, strict=True):
        budget = tolerance(contract, contract.key(args).dtype, result.dtype)
        used = shares(result, one.value, budget)
        seen.used(used.rms, used.peak)
        seen.expect(rule, used.within, f"{which}{used}")
    componentwise(seen, results, wanted, "componentwise" if rule == "accuracy" else rule)


def componentwise(
    seen: Evidence, results: Results, wanted: tuple[Bounded, ...], rule: str = "componentwise"
) -> None:
    for which, result, one in zip(labels(results), results, wanted, strict=True):
        found = excess(result, one.value, one.error)
        seen.used_alone(found.share)
        seen.expect(rule, found.within, f"{which}{found.says}")


def labels(results: Results) -> list[str]:
    """What to say first of each of several results; of a single one nothing."""
    return [f"result {i}: " for i in range(len(results))] if len(results) > 1 else [""]


def tolerance(contract: Contract, dtype: torch.dtype, result: torch.dtype) -> Tolerance:
    """The tolerance that binds a result: that of its own dtype, since ops compute in fp32 at least
    and round once; a result wider than that is as good as what was computed."""
    working = torch.promote_types(dtype, torch.float32)
    wider = torch.finfo(result).eps < torch.finfo(working).eps
    return contract.tolerance[working if wider else result]


def _served_by(seen: Evidence, target: Target, args: Args, watch: Watch) -> None:
    seen.ran = target.bound(args)
    seen.expect(
        "served_by",
        seen.ran == target.impl.id,
        f"{target.impl.id} was asked for and {seen.ran} served",
    )
    ran = watch.names[0] if watch.names else "nothing"
    seen.expect(
        "served_by",
        ran == target.torch_op,
        f"under a dispatch mode the torch op must be {target.torch_op}, and {ran} ran",
    )


def promised(seen: Evidence, found: Results, wanted: Results) -> bool:
    def words(results: Results) -> str:
        return ", ".join(f"{name_of(t.dtype)}{list(t.shape)} on {t.device}" for t in results)

    return seen.expect(
        "result",
        words(found) == words(wanted),
        f"the contract promises {words(wanted)}, the result is {words(found)}",
    )


def inputs_kept(seen: Evidence, target: Target, args: Args, before: list[Tensor]) -> None:
    names = [n for n, arg in zip(target.contract.parameters, args) if isinstance(arg, Tensor)]
    for name, tensor, bits in zip(names, tensors(args), before):
        now = storage_bits(tensor)
        changed = int((now != bits).sum()) if now.shape == bits.shape else len(now)
        seen.expect("inputs_kept", not changed, f"{changed} bytes of {name}'s storage changed")


def _fresh(seen: Evidence, target: Target, args: Args, first: Results, second: Results) -> None:
    homes = [_home(result) for result in first if result.numel()]
    names = [n for n, arg in zip(target.contract.parameters, args) if isinstance(arg, Tensor)]
    for name, tensor in zip(names, tensors(args)):
        seen.expect("fresh", _home(tensor) not in homes, f"a result lies in {name}'s storage")
    seen.expect("fresh", len(set(homes)) == len(homes), "two results lie in one storage")
    over = any(_home(result) in homes for result in second)
    seen.expect("fresh", not over, "a second call's result lies over the first's")


def _placed(seen: Evidence, target: Target, args: Args, result: Tensor) -> None:
    """Written between columns that must stay, then, where it adds to one, over the partial sum."""
    if not result.dim():
        return
    beside, n = 3, result.shape[-1]
    rows = result.new_full((*result.shape[:-1], n + 2 * beside), CANARY)
    out = rows[..., beside : beside + n]
    target.call_into(args, out)
    _as_alone(seen, target, args, out, result)
    named = dict(zip(target.contract.parameters, args))
    partial = named.get("partial")
    if partial is not None and partial.dtype is result.dtype:
        out.copy_(partial)
        target.call_into(tuple({**named, "partial": out}.values()), out)
        _as_alone(seen, target, args, out, result)
    out.fill_(CANARY)
    written = int((rows != CANARY).sum())
    seen.expect("placed", not written, f"{written} elements beside out were written")


def _as_alone(seen: Evidence, target: Target, args: Args, out: Tensor, result: Tensor) -> None:
    if target.impl.shape_invariant:
        seen.expect("placed", same_bits((out,), (result,)), "written to out it has other bits")
    else:
        accuracy(seen, target.contract, (out,), args, rule="placed")


def _home(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _repeatable(
    seen: Evidence, kept: Results, first: Results, second: Results, watched: Results
) -> None:
    seen.expect("repeatable", same_bits(kept, second), "a second call gave other bits")
    seen.expect("repeatable", same_bits(kept, first), "a second call changed the first's result")
    seen.expect("repeatable", same_bits(kept, watched), "a dispatch mode got other bits")
