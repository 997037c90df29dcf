"""A run: every case beside its peers, as data ready for JSON."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence

import torch

import accel
from accel.accelerator import Accelerator
from accel.bench import agreement, ceilings
from accel.bench.ceilings import Ceilings
from accel.bench.contest import SERVES
from accel.bench.judging import AnyCase, Row, measured, rated
from accel.bench.timing import Clock
from accel.contracts.checks import FLOATS, name_of
from accel.errors import UnsupportedCapability

SCHEMA = 1
ROUNDS = 11
# Ceilings are measured again after so many cases: on a machine that others use too, the best of
# several times is nearer to the truth.
AGAIN = 8
DTYPES = (torch.float32, torch.bfloat16)


Progress = Callable[[int, int, str], None]  # how many cases are done, of how many, and what comes

# Without being told, half precision is measured where torch's own products in it are not slower
# than this share of those in fp32: some processors take minutes for one (512x512x512 in bf16: 1.3
# GFLOP/s beside 100 in fp32, Zen 3 with 2 threads).
FAST = 0.25


def bench(
    accelerator: Accelerator, chosen: Sequence[AnyCase], dtypes: Sequence[torch.dtype] = (), *,
    rounds: int = ROUNDS, progress: Progress = lambda done, of, what: None,
) -> Row:  # fmt: skip
    """Everything, ready for JSON: the machine, how it was measured, ceilings, and a row per case.

    ``dtypes`` default to float32 and, where torch computes products in it fast, bfloat16.
    ``progress`` is told what comes before it is measured.
    """
    asked = list(dtypes or DTYPES)
    for dtype in asked:
        if dtype not in FLOATS:
            known = ", ".join(map(name_of, FLOATS))
            raise ValueError(f"accel bench has no dtype {name_of(dtype)}; known: {known}")
    progress(0, len(chosen), "ceilings")
    roof = ceilings.measure(accelerator, asked)
    slow = {} if dtypes else _slow(roof, asked)
    todo = [(case, d) for case in chosen for d in asked if name_of(d) not in slow]
    rows: list[Row] = []
    for case, dtype in todo:
        progress(len(rows), len(todo), f"{case.name}, {name_of(dtype)}")
        if len(rows) % AGAIN == AGAIN - 1:
            roof = roof.and_again(ceilings.measure(accelerator, asked, sides=()))
        rows.append(measured(case, dtype, accelerator, rounds))
    progress(len(rows), len(todo), "ceilings again")
    roof = roof.and_again(ceilings.measure(accelerator, asked))
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


def machine(accelerator: Accelerator) -> Row:
    """What was measured on."""
    try:
        device = accelerator.properties().name
    except UnsupportedCapability:
        device = f"{accelerator.backend.vendor} {accelerator.device_type}"
    return {
        "backend": accelerator.name,
        "device": device,
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
        "byte where arguments come from memory; above all of it where results stay in a cache",
        "checked": f"every result against the contract's reference in float64: implementations "
        f"within its tolerance, peers and gradients within {agreement.SLACK:g} times it",
    }


def healthy(report: Row) -> bool:
    """In every case what serves was measured: it neither raised nor computed something else."""
    return all(any(c["kind"] == SERVES for c in row["contenders"]) for row in report["cases"])
