"""What a call through accel.ops costs over the kernel it is bound to: ``make bench``, or alone.

Microseconds on one thread and the smallest tensors, where nothing else shows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import accel
from accel import ops
from accel.bench.timing import Clock, in_rounds
from accel.contracts import LINEAR
from accel.ops.door import bound

ROUNDS, PATIENCE = 101, 10.0
ALLOWED = {False: 2.0, True: 6.0}  # microseconds, by whether autograd records


def rows() -> Iterator[dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for entry in ops.explain("linear").verdicts:
            if entry.accepted and entry.impl.id != "reference":
                for recording in ALLOWED:
                    yield row(entry.impl.id, recording)
    finally:
        torch.set_num_threads(threads)


def row(impl: str, recording: bool) -> dict[str, Any]:
    x, b = torch.randn(1, 8), torch.randn(8)
    w = torch.randn(8, 8, requires_grad=recording)
    with ops.use(f"linear={impl}", exact=False):
        kernel = bound(LINEAR, (x, w, b), (None, None), recording).kernel

        def bare(repeats: int) -> None:
            with torch.no_grad():
                for _ in range(repeats):
                    kernel(x, w, b, None, None)

        def through(repeats: int) -> None:
            with nullcontext() if recording else torch.no_grad():
                for _ in range(repeats):
                    ops.linear(x, w, b)

        clock = Clock(accel.get_accelerator())
        for loop in (bare, through):
            loop(1)
        times = in_rounds({"bare": bare, "through": through}, clock, ROUNDS, PATIENCE)
    over = statistics.median(t - b for t, b in zip(times["through"], times["bare"]))
    return {
        "implementation": impl,
        "recording": recording,
        "kernel_us": statistics.median(times["bare"]) * 1e6,
        "call_us": statistics.median(times["through"]) * 1e6,
        "over_us": over * 1e6,
    }


def table(results: Iterator[dict[str, Any]]) -> Table:
    shown = Table(
        "implementation", "autograd", "kernel µs", "call µs", "over it µs", "allowed µs",
        title="a call through accel.ops.linear, 1x8x8",
    )  # fmt: skip
    for found in results:
        shown.add_row(
            found["implementation"], "records" if found["recording"] else "off",
            *(f"{found[name]:.2f}" for name in ("kernel_us", "call_us", "over_us")),
            f"{ALLOWED[found['recording']]:.0f}",
        )  # fmt: skip
    return shown


if __name__ == "__main__":
    Console().print(table(rows()))
