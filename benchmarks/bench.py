"""Speed beside the peers, in one run: ``make bench``, or ``python benchmarks/bench.py --json F``.

    linear    accel_cpu.native beside F.linear and oneDNN's packed product, K=1024, N=4096
    call      what a call through accel.ops costs over the kernel it is bound to
    layers    TiledLinear and the ZeRO-3 linear beside nn.Linear (layers.py)
    losses    a head's loss and log-probabilities, in tiles and with all logits (losses.py)
    engine    generating and training beside transformers (engine.py)
    eager     every op's eager torch implementation beside plain torch (eager.py)

Ratios are medians over rounds taken in turn; above 1 is faster than F.linear.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import eager
import engine
import layers
import losses
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timing import in_turn, ratio

import accel
from accel import ops
from accel.contracts import LINEAR
from accel.ops.door import bound
from accel_cpu import onednn

K, N = 1024, 4096
ROWS = (1, 16, 512)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
COLD = 16  # weights taken in turn, so that each comes from memory: 256 MiB in fp32


def linear_rows() -> list[dict[str, Any]]:
    rows = []
    for dtype in DTYPES:
        weights = [torch.randn(N, K, dtype=dtype) * K**-0.5 for _ in range(COLD)]
        cases = [(m, weights[:1]) for m in ROWS] + [(1, weights)]
        for m, chosen in cases:
            rows.append(linear_row(dtype, m, chosen))
    return rows


def linear_row(dtype: torch.dtype, m: int, weights: list[torch.Tensor]) -> dict[str, Any]:
    x = torch.randn(m, K, dtype=dtype)
    decision = ops.explain("linear", device="cpu", dtype=dtype)
    if decision.chosen is None or decision.chosen.impl.id != "accel_cpu.native":
        raise SystemExit(f"the native kernel is not what would be measured:\n{decision}")
    packed = next(v for v in decision.verdicts if v.impl.id == "accel_cpu.onednn")
    calls: dict[str, Callable[[], object]] = {
        "F.linear": lambda: [F.linear(x, w) for w in weights],
        "accel_cpu.native": lambda: [ops.linear(x, w) for w in weights],
    }
    if packed.accepted:
        calls["accel_cpu.onednn"] = lambda: [onednn.linear(x, w, None, None, None) for w in weights]
    with onednn.frozen_weights():  # packed before, as its users do
        times = in_turn(calls)
    flops = 2 * m * K * N * len(weights)
    row: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "M": m,
        "weights": "memory" if len(weights) > 1 else "cache",
        "onednn_refused": None if packed.accepted else str(packed.refusals[0]),
    }
    for name, seconds in times.items():
        row[name] = {
            "gflops": flops / statistics.median(seconds) / 1e9,
            "gbytes": sum(w.numel() * w.element_size() for w in weights)
            / statistics.median(seconds) / 1e9,
            "ratio": ratio(times["F.linear"], seconds),
        }  # fmt: skip
    return row


def call_rows() -> list[dict[str, Any]]:
    """Microseconds of a call over the bound kernel, on one thread and the smallest tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for impl in ("accel_cpu.native", "torch"):
            for recording in (False, True):
                rows.append(call_row(impl, recording))
    finally:
        torch.set_num_threads(threads)
    return rows


def call_row(impl: str, recording: bool) -> dict[str, Any]:
    x, b = torch.randn(1, 8), torch.randn(8)
    w = torch.randn(8, 8, requires_grad=recording)
    with ops.use(f"linear={impl}", exact=False):
        kernel = bound(LINEAR, (x, w, b), (None, None), recording).kernel

        def bare() -> None:
            with torch.no_grad():
                for _ in range(1000):
                    kernel(x, w, b, None, None)

        def through() -> None:
            with nullcontext() if recording else torch.no_grad():
                for _ in range(1000):
                    ops.linear(x, w, b)

        times = in_turn({"bare": bare, "through": through}, seconds=2.0)
    micros = {name: [s * 1e3 for s in seconds] for name, seconds in times.items()}
    over = statistics.median(t - b for t, b in zip(micros["through"], micros["bare"]))
    return {
        "implementation": impl,
        "recording": recording,
        "kernel_us": statistics.median(micros["bare"]),
        "call_us": statistics.median(micros["through"]),
        "over_us": over,
        "allowed_us": 6.0 if recording else 2.0,
    }


def show(results: dict[str, Any], console: Console) -> None:
    table = Table(
        "dtype", "M", "weights in", "F.linear GFLOP/s", "native GFLOP/s", "oneDNN packed GFLOP/s",
        "native / F.linear", "oneDNN / F.linear", title=f"linear, K={K}, N={N}",
    )  # fmt: skip
    for row in results["linear"]:
        native, packed = row["accel_cpu.native"], row.get("accel_cpu.onednn")
        table.add_row(
            row["dtype"], str(row["M"]), row["weights"], f"{row['F.linear']['gflops']:.0f}",
            f"{native['gflops']:.0f} ({native['gbytes']:.0f} GB/s)",
            f"{packed['gflops']:.0f}" if packed else "refused",
            f"{native['ratio']:.2f}", f"{packed['ratio']:.2f}" if packed else "-",
        )  # fmt: skip
    console.print(table)
    for reason in {row["onednn_refused"] for row in results["linear"]} - {None}:
        console.print(f"oneDNN refused: {reason}", markup=False)
    table = Table(
        "implementation", "autograd", "kernel µs", "call µs", "over it µs", "allowed µs",
        title="a call through accel.ops.linear, 1x8x8",
    )  # fmt: skip
    for row in results["call"]:
        table.add_row(
            row["implementation"], "records" if row["recording"] else "off",
            f"{row['kernel_us']:.2f}", f"{row['call_us']:.2f}", f"{row['over_us']:.2f}",
            f"{row['allowed_us']:.0f}",
        )  # fmt: skip
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    console = Console()
    acc = accel.registry.registry().accelerator("cpu")
    machine = (
        f"{acc.properties().name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    console.print(f"{machine}, {platform.platform()}", highlight=False)
    with torch.no_grad(), console.status("linear"):
        linear = linear_rows()
    with console.status("call"):
        call = call_rows()
    with console.status("layers"):
        tiles = list(layers.rows())
    with console.status("losses"):
        heads = list(losses.rows(acc))
    with console.status("engine"):
        beside = list(engine.rows())
    with console.status("eager"):  # last: from here on the process keeps what it frees
        eager.keep_freed_memory()
        plain = list(eager.rows())
    results = {
        "machine": machine, "linear": linear, "call": call, "layers": tiles, "losses": heads,
        "engine": beside, "eager": plain,
    }  # fmt: skip
    show(results, console)
    console.print(layers.table(tiles))
    console.print(losses.table(heads))
    console.print(engine.table(beside))
    console.print(eager.table(plain))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
