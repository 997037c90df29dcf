"""Each op's eager torch implementation beside what one writes for it in plain torch.

A forward alone, and a forward with the backward, in fp32 and bf16: at a size one meets, 512 x 1024,
and at 4 x 64, where what a call costs by itself shows. The cases are in eager_cases.py. Run by
``bench.py``, or alone (``--op softmax`` for one op).
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from eager_cases import cases
from eager_inputs import TINY, USUAL, Case
from rich.table import Table
from timing import in_turn, ratio
from torch import Tensor

from accel import ops

DTYPES = (torch.float32, torch.bfloat16)
SECONDS, ROUNDS = 0.05, 9  # of each side of a pair
WAYS = ("forward", "backward")

Mode = Callable[[Callable[..., Any], Case], Callable[[], None]]


def rows(only: str | None = None) -> Iterator[dict[str, Any]]:
    """One row per case, dtype and size: what the op costs in units of the plain text's time
    (medians of paired ratios), forward and with the backward, and microseconds over it."""
    with ops.use("*=torch", exact=False):
        for dtype in DTYPES:
            for size in (USUAL, TINY):
                for case in cases(size, dtype):
                    if only in (None, case.op):
                        yield {
                            "op": case.op,
                            "what": case.what,
                            "note": case.note,
                            "dtype": str(dtype).removeprefix("torch."),
                            "size": size.name,
                            "forward": compared(case, forward),
                            "backward": compared(case, with_backward),
                        }


def compared(case: Case, mode: Mode) -> dict[str, float]:
    calls = {"plain": mode(case.plain, case), "ours": mode(case.ours, case)}
    times = in_turn(calls, seconds=SECONDS, rounds=ROUNDS)
    return {
        "cost": 1 / ratio(times["plain"], times["ours"]),
        "over_us": statistics.median(o - p for o, p in zip(times["ours"], times["plain"])) * 1e6,
    }


def forward(function: Callable[..., Any], case: Case) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            function(*case.tensors)

    return call


def with_backward(function: Callable[..., Any], case: Case) -> Callable[[], None]:
    tensors, leaves = case.recorded()
    with torch.no_grad():
        found = function(*tensors)
    results = (found,) if isinstance(found, Tensor) else found
    upstream = [torch.randn_like(y) for y in results]

    def call() -> None:
        found = function(*tensors)
        results = (found,) if isinstance(found, Tensor) else found
        torch.autograd.grad(results, leaves, upstream)

    return call


def keep_freed_memory() -> None:
    """Have the C library keep what was freed, as it does in a process that has run for a while.

    Otherwise pages that go back to the system and come again, clean, are most of the time of small
    operations, whichever side of a pair they fall on.
    """
    trim_threshold, mmap_threshold, largest = -1, -3, 1 << 25
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, largest)


def table(results: list[dict[str, Any]]) -> Table:
    shown = Table(
        "op", "", "dtype", "forward", "and backward", "4x64: forward (µs more)",
        "and backward (µs more)", "what the op holds besides",
        title="eager torch implementations, in units of plain torch's time",
    )  # fmt: skip
    by_size: dict[str, dict[tuple[str, ...], dict[str, Any]]] = {"usual": {}, "tiny": {}}
    for row in results:
        by_size[row["size"]][row["op"], row["what"], row["dtype"]] = row
    for key, row in by_size["usual"].items():
        tiny = by_size["tiny"][key]
        shown.add_row(
            *key,
            *(f"{row[way]['cost']:.2f}" for way in WAYS),
            *(f"{tiny[way]['cost']:.2f} ({tiny[way]['over_us']:+.0f})" for way in WAYS),
            row["note"],
        )
    return shown


if __name__ == "__main__":
    import argparse

    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", help="only this op")
    keep_freed_memory()
    Console(width=160).print(table(list(rows(parser.parse_args().op))))
