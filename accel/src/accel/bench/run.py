"""A run: every case beside its peers, as data ready for JSON."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

import accel
from accel.accelerator import Accelerator
from accel.bench import agreement, ceilings
from accel.bench.case import Case
from accel.bench.ceilings import Ceilings
from accel.bench.contest import OURS, SERVES, Contest, Refused, contest, said
from accel.bench.timing import Clock, Spread, in_rounds, ratio
from accel.contracts import Tolerance
from accel.contracts.checks import name_of

SCHEMA = 1
ROUNDS = 11
DTYPES = (torch.float32, torch.bfloat16)
Row = dict[str, Any]


Progress = Callable[[int, int, str], None]  # how many cases are done, of how many, and what comes

# Without being told, half precision is measured where torch's own products in it are not slower
# than this share of those in fp32: some processors take minutes for one (512x512x512 in bf16: 1.3
# GFLOP/s beside 100 in fp32, Zen 3 with 2 threads).
FAST = 0.25


def bench(
    accelerator: Accelerator, chosen: Sequence[Case], dtypes: Sequence[torch.dtype] = (), *,
    rounds: int = ROUNDS, progress: Progress = lambda done, of, what: None,
) -> Row:  # fmt: skip
    """Everything, ready for JSON: the machine, how it was measured, ceilings, and a row per case.

    ``dtypes`` default to float32 and, where torch computes products in it fast, bfloat16.
    ``progress`` is told what comes before it is measured.
    """
    asked = list(dtypes or DTYPES)
    progress(0, len(chosen), "ceilings")
    before = ceilings.measure(accelerator, asked)
    slow = {} if dtypes else _slow(before, asked)
    todo = [(case, d) for case in chosen for d in asked if name_of(d) not in slow]
    rows: list[Row] = []
    for case, dtype in todo:
        progress(len(rows), len(todo), f"{case.name}, {name_of(dtype)}")
        rows.append(measured(case, dtype, accelerator, rounds))
    progress(len(rows), len(todo), "ceilings again")
    # Of a machine that others use too, the better of two times is nearer to the truth.
    roof = before.and_again(ceilings.measure(accelerator, asked))
    return {
        "schema": SCHEMA,
        "machine": machine(accelerator),
        "method": method(Clock(accelerator)),
        "ceilings": roof.to_list(),
        "left_out": slow,
        "cases": [rated(row, roof) for row in rows],
    }


def _slow(roof: Ceilings, dtypes: Sequence[torch.dtype]) -> dict[str, str]:
    """Of the dtypes that nobody asked for those that would take long, each with the reason."""
    first = roof.best_of_torch(dtypes[0])
    found = {}
    for dtype in dtypes[1:]:
        rate = roof.best_of_torch(dtype)
        if rate < FAST * first:
            found[name_of(dtype)] = (
                f"torch's product of matrices reaches {rate / 1e9:.3g} GFLOP/s in it beside "
                f"{first / 1e9:.3g} in {name_of(dtypes[0])}; --dtypes {name_of(dtype)} measures it"
            )
    return found


def machine(accelerator: Accelerator) -> dict[str, Any]:
    """What was measured on."""
    properties = accelerator.properties()
    return {
        "backend": accelerator.name,
        "device": properties.name,
        "compute_units": properties.compute_units,
        "threads": torch.get_num_threads(),
        "accel": accel.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def method(clock: Clock) -> dict[str, str]:
    """How, in words."""
    return {
        "time": f"seconds a call, by {clock.method}; median and quartiles of the rounds",
        "ratio": "the peer's time over that of the implementation that serves, round by round; "
        "median and quartiles",
        "rounds": "every contender once in each, in an order drawn anew; slow ones in the first "
        "rounds alone",
        "rates": "the contract's bytes and flops over the median time; of forward and backward "
        "three times a product's flops, and no bytes",
        "share": "of what the roof allows: the product's ceiling, or the memory's times flops a "
        "byte where arguments come from memory",
        "checked": f"every result against the contract's reference in float64: implementations "
        f"within its tolerance, peers and gradients within {agreement.SLACK:g} times it",
    }


def measured(case: Case, dtype: torch.dtype, accelerator: Accelerator, rounds: int) -> Row:
    """One case: who was measured, with what figures, and who was not."""
    about = {
        "op": case.op, "variant": case.variant, "size": case.size.name, "shape": case.shape,
        "dtype": name_of(dtype), "backward": case.backward,
    }  # fmt: skip
    found = contest(case, dtype, accelerator)
    return about | judged(found, case.contract.tolerance[dtype], Clock(accelerator), rounds)


def judged(found: Contest, tolerance: Tolerance, clock: Clock, rounds: int) -> Row:
    """Check all contenders, time those who pass, and put their figures side by side."""
    errors, refused = _checked(found, tolerance)
    passed = [c for c in found.contenders if c.name in errors]
    times = in_rounds({c.name: c.timed() for c in passed}, clock, rounds)
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
                "error": errors[c.name],
                "ratio": ratio(times[c.name], times[ours]).to_dict()
                if ours and c.name != ours
                else None,
            }
            for c in passed
        ],
        "refused": [asdict(r) for r in refused],
    }


def _checked(found: Contest, tolerance: Tolerance) -> tuple[dict[str, float | None], list[Refused]]:
    """By name the share of the error budget that each used; those who broke it are refused."""
    errors: dict[str, float | None] = {}
    refused = list(found.refused)
    wanted: tuple[Tensor, ...] | None = None
    for one in found.contenders:
        try:
            got = one.results()
            if found.wanted is None:
                errors[one.name] = None
                continue
            wanted = found.wanted() if wanted is None else wanted
            strict = one.kind in OURS and not one.leaves
            used = agreement.error(got, wanted).used(tolerance, 1.0 if strict else agreement.SLACK)
        except Exception as error:
            refused.append(Refused(one.name, one.kind, said(error)))
            continue
        if used <= 1:
            errors[one.name] = used
        else:
            reason = f"computes something else: {used:.3g} of the error it may have"
            refused.append(Refused(one.name, one.kind, reason))
    return errors, refused


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


def healthy(report: Row) -> bool:
    """In every case what serves was measured: it neither raised nor computed something else."""
    return all(any(c["kind"] == SERVES for c in row["contenders"]) for row in report["cases"])
