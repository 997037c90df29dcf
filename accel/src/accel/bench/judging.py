"""Judging a case: who computes the right thing, how fast, and what the roof allows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from accel.accelerator import Accelerator
from accel.bench import agreement
from accel.bench.case import Case
from accel.bench.ceilings import Ceilings
from accel.bench.contest import (
    COMPILED,
    OURS,
    SERVES,
    Contender,
    Contest,
    Goal,
    Refused,
    contest,
    said,
)
from accel.bench.layers import LayerCase
from accel.bench.timing import Clock, Spread, in_rounds, ratio
from accel.contracts import Tolerance
from accel.contracts.checks import name_of
from accel.errors import AccelWarning


@dataclass(frozen=True)
class Check:
    """Of a contender who passed: the share of the error budget it used, None where nobody can say,
    and the bytes at its highest point, where they were asked."""

    error: float | None
    peak: int | None


GOAL_ROUNDS = 21  # at least, where a promise of a hundredth is looked at

Row = dict[str, Any]
AnyCase = Case | LayerCase


def measured(case: AnyCase, dtype: torch.dtype, accelerator: Accelerator, rounds: int) -> Row:
    """One case: who was measured, with what figures, and who was not."""
    about = {
        "op": case.op, "variant": case.variant, "size": case.size.name, "shape": case.shape,
        "dtype": name_of(dtype), "backward": case.backward,
    }  # fmt: skip
    with warnings.catch_warnings():
        # Which implementation serves, and why, is among the figures.
        warnings.simplefilter("ignore", AccelWarning)
        if isinstance(case, LayerCase):
            found, goals = case.contest(dtype, accelerator), case.goals
        else:
            found, goals = contest(case, dtype, accelerator), ()
        rounds = max(rounds, GOAL_ROUNDS) if goals else rounds
        row = about | judged(found, case.tolerance(dtype), accelerator, rounds)
    if any(c.kind == COMPILED for c in found.contenders):
        torch.compiler.reset()  # after eight shapes torch would compile no more, without a word
    return row | {"goals": reached(row, goals)}


def judged(found: Contest, tolerance: Tolerance, accelerator: Accelerator, rounds: int) -> Row:
    """Check all contenders, time those who pass, and put their figures side by side."""
    checks, refused = checked(found, tolerance, accelerator)
    passed = [c for c in found.contenders if c.name in checks]
    clock = Clock(accelerator)
    times = in_rounds({c.name: c.timed() for c in passed}, clock, rounds, found.patience)
    ours = next((c.name for c in passed if c.kind == SERVES), None)
    return {
        "from": "memory" if found.work.cold else "cache",
        "bytes": found.work.bytes,
        "flops": found.work.flops,
        "contenders": [
            {
                "name": c.name,
                "kind": c.kind,
                "seconds": Spread.of(times[c.name]).to_dict(),
                "rounds": times[c.name],
                "error": checks[c.name].error,
                "peak_bytes": checks[c.name].peak,
                "ratio": ratio(times[c.name], times[ours]).to_dict()
                if ours and c.name != ours
                else None,
            }
            for c in passed
        ],
        "refused": [asdict(r) for r in refused],
    }


def checked(
    found: Contest, tolerance: Tolerance, accelerator: Accelerator
) -> tuple[dict[str, Check], list[Refused]]:
    """Everyone called once: by name what they used of the error budget; those who broke it are
    refused."""
    passed: dict[str, Check] = {}
    refused = list(found.refused)
    wanted: tuple[Tensor, ...] | None = None
    for one in found.contenders:
        try:
            if found.memory:
                got, peak = _at_peak(one, accelerator)
            else:
                got, peak = one.results(), None
            if found.wanted is None:
                passed[one.name] = Check(None, peak)
                continue
            wanted = found.wanted() if wanted is None else wanted
            strict = one.kind in OURS and not one.leaves
            slack = 1.0 if strict else agreement.SLACK
            used = agreement.error(got[: len(wanted)], wanted).used(tolerance, slack)
        except Exception as error:
            refused.append(Refused(one.name, one.kind, said(error)))
            continue
        if used <= 1:
            passed[one.name] = Check(used, peak)
        else:
            broken = "breaks the contract" if one.kind in OURS else "computes something else"
            reason = f"{broken}: {used:.2f} times the error it may have"
            refused.append(Refused(one.name, one.kind, reason))
    return passed, refused


def _at_peak(
    contender: Contender, accelerator: Accelerator
) -> tuple[tuple[Tensor, ...], int | None]:
    """Its results, and the bytes at the highest point above its arguments and their gradients;
    None where the device does not tell."""
    if not accelerator.supports("peak_memory_stats"):
        return contender.results(), None
    before = accelerator.memory_allocated()
    accelerator.reset_peak_memory_stats()
    results = contender.results()
    accelerator.synchronize()
    gradients = sum(leaf.nbytes for leaf in contender.leaves)
    return results, max(accelerator.max_memory_allocated() - before - gradients, 0)


def reached(row: Row, goals: Sequence[Goal]) -> list[Row]:
    """How what serves stands beside its goals: times of a peer's time or memory, and how many are
    allowed."""
    by_name = {c["name"]: c for c in row["contenders"]}
    ours = next((c for c in row["contenders"] if c["kind"] == SERVES), None)
    found = []
    for goal in goals:
        peer = by_name.get(goal.beside)
        if ours is None or peer is None:
            continue
        times = 1 / peer["ratio"]["median"] if goal.what == "time" else None
        if goal.what == "memory" and peer["peak_bytes"]:
            times = ours["peak_bytes"] / peer["peak_bytes"]
        if times is not None:
            found.append(asdict(goal) | {"is": times})
    return found


def rated(row: Row, ceilings: Ceilings) -> Row:
    """With GFLOP/s and GB/s of every contender, the share of what the roof allows, and the ceiling
    that binds."""
    rated = [c | _rates(row, c["seconds"]["median"], ceilings) for c in row["contenders"]]
    return row | {"contenders": rated}


def _rates(row: Row, seconds: float, ceilings: Ceilings) -> Row:
    flops, moved, cold = row["flops"], row["bytes"], row["from"] == "memory"
    product = flops / ceilings.product(row["dtype"]) if flops else 0.0  # seconds at least
    memory = moved / ceilings.memory if moved else 0.0
    # From a cache the memory is no limit, and there is no ceiling for those that it would limit.
    binds = "memory" if cold and memory > product else "product" if product > memory else None
    return {
        "gflops": flops / seconds / 1e9 if flops else None,
        "gbytes": moved / seconds / 1e9 if moved else None,
        "binds": binds,
        "share": max(product, memory) / seconds if binds else None,
    }
