"""Linear layers beside ``nn.Linear``: forward and backward of 4x128x1024 -> 4096 in fp32.

What a layer adds shows where torch's own product serves all; with the implementation that serves
by default the op's own speed, beside torch's, is in the cost too. Run by ``bench.py``, or alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from rich.table import Table
from timing import in_turn, ratio
from torch import nn

from accel import ops
from accel.layers.linear import Linear
from accel.layers.tiled_linear import TiledLinear
from accel.layers.zero3 import LinearModuleForZeroStage3

IN, OUT, ROWS = 1024, 4096, (4, 128)
ALLOWED = {"TiledLinear 2x4": 1.03, "LinearModuleForZeroStage3": 1.02}


def layers() -> dict[str, nn.Module]:
    plain = nn.Linear(IN, OUT)
    return {
        "nn.Linear": plain,
        "Linear": Linear.from_linear(plain),
        "LinearModuleForZeroStage3": LinearModuleForZeroStage3.from_linear(plain),
        "TiledLinear 2x4": TiledLinear.from_linear(plain, in_splits=2, out_splits=4),
    }


def settings() -> Iterator[tuple[str, AbstractContextManager[None]]]:
    """(what serves linear, the policy under which it does)"""
    yield "torch", ops.use("*=torch", exact=False)
    chosen = ops.explain("linear", grad=True).chosen
    if chosen is not None and chosen.impl.id != "torch":
        yield chosen.impl.id, nullcontext()


def rows() -> Iterator[dict[str, Any]]:
    """One row per layer and implementation: milliseconds a step, and what it costs in units of
    nn.Linear and of the plain layer over the same implementation (medians of paired ratios)."""
    for serves, policy in settings():
        with policy:
            times = measured(layers())
        for name, taken in times.items():
            yield {
                "layer": name,
                "serves": "-" if name == "nn.Linear" else serves,
                "ms": statistics.median(taken) * 1e3,
                "cost": 1 / ratio(times["nn.Linear"], taken),
                "over_op": 1 / ratio(times["Linear"], taken),
                "allowed": ALLOWED.get(name),
            }


def measured(made: Mapping[str, nn.Module]) -> dict[str, list[float]]:
    x, grad = torch.randn(*ROWS, IN, requires_grad=True), torch.randn(*ROWS, OUT)
    calls: dict[str, Callable[[], object]] = {
        name: partial(step, layer, x, grad) for name, layer in made.items()
    }
    return in_turn(calls, seconds=8.0)


def step(layer: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> None:
    x.grad = None
    layer.zero_grad()
    layer(x).backward(grad)


def table(results: list[dict[str, Any]]) -> Table:
    found = Table(
        "layer", "product by", "ms", "of nn.Linear's time", "of Linear's time", "allowed",
        title=f"forward and backward, {ROWS[0]}x{ROWS[1]}x{IN} -> {OUT}, fp32",
    )  # fmt: skip
    for row in results:
        found.add_row(
            row["layer"], row["serves"], f"{row['ms']:.1f}", f"{row['cost']:.3f}",
            f"{row['over_op']:.3f}", f"{row['allowed']:.2f}" if row["allowed"] else "-",
        )  # fmt: skip
    return found


if __name__ == "__main__":
    from rich.console import Console

    Console().print(table(list(rows())))
