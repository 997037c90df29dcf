"""The main job, start to end: pick a device, train, sample, prove.

A byte-level transformer learns Python from the standard library's own source. Every product and
norm goes through ``accel.ops``, which resolves it to a kernel of the backend in use; nothing here
names a device. Run it with ``make demo``, or ``python examples/train_bytes.py --steps 50``.
"""

from __future__ import annotations

import argparse
import math
import random
import sysconfig
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn

from accel import ops, selection
from accel.errors import AccelWarning


@dataclass(frozen=True)
class Config:
    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 344
    context: int = 128  # bytes the model sees
    batch: int = 16
    rate: float = 3e-3


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight)


class Linear(nn.Module):
    def __init__(self, k: int, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, k) * k**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight)


class Layer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.heads = c.heads
        self.attention_norm, self.mlp_norm = RMSNorm(c.width), RMSNorm(c.width)
        self.qkv, self.out = Linear(c.width, 3 * c.width), Linear(c.width, c.width)
        self.gate, self.up = Linear(c.width, c.hidden), Linear(c.width, c.hidden)
        self.down = Linear(c.hidden, c.width)

    def forward(self, x: Tensor) -> Tensor:  # [B, S, width]
        b, s, w = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(b, s, 3, self.heads, w // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(b, s, w))
        h = ops.gated_linear(self.mlp_norm(x), self.gate.weight, self.up.weight)
        return x + self.down(h)


class ByteModel(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.context = c.context
        self.bytes = nn.Embedding(256, c.width)
        self.positions = nn.Embedding(c.context, c.width)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm, self.head = RMSNorm(c.width), Linear(c.width, 256)

    def forward(self, ids: Tensor) -> Tensor:  # [B, S] -> [B, S, 256]
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.bytes(ids) + self.positions(positions)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def library_source(limit: int = 4_000_000) -> bytes:
    """The standard library's own modules, in a fixed shuffled order."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(0).shuffle(files)
    return b"\n\n".join(file.read_bytes() for file in files)[:limit]


def batches(data: Tensor, c: Config, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(data) - c.context - 1, (c.batch,), generator=generator)
    rows = data[starts[:, None] + torch.arange(c.context + 1)]
    return rows[:, :-1], rows[:, 1:]


def train(
    model: ByteModel, data: Tensor, c: Config, steps: int, seconds: float, device: torch.device,
    console: Console,
) -> list[float]:  # fmt: skip
    """Train for ``steps``, or for ``seconds`` where the machine is slower than that; return the
    loss of every step, in nats per byte."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=c.rate, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    losses: list[float] = []
    columns = (
        TextColumn("training"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=steps, loss="")
        start = time.perf_counter()
        for step in range(steps):
            done = max(step / steps, (time.perf_counter() - start) / seconds)
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = c.rate * learning_rate(done)
            inputs, targets = batches(data, c, generator)
            logits = model(inputs.to(device))
            loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            recent = sum(losses[-20:]) / len(losses[-20:])
            progress.update(task, advance=1, loss=f"loss {recent:.3f} nats/byte")
            if not console.is_terminal and (step + 1) % max(steps // 10, 1) == 0:
                console.print(f"step {step + 1}/{steps}: loss {recent:.3f} nats/byte")
    return losses


def learning_rate(done: float) -> float:
    """Share of the full rate after a share of the training: warm-up, then half a cosine."""
    return min(done / 0.05, 1.0) * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def sample(model: ByteModel, prompt: bytes, new: int, device: torch.device) -> str:
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor(list(prompt), device=device)[None]
    for _ in range(new):
        logits = model(ids[:, -model.context :])[0, -1].float().cpu()
        probabilities = torch.softmax(logits / 0.7, -1)
        chosen = torch.multinomial(probabilities, 1, generator=generator)
        ids = torch.cat([ids, chosen[None].to(device)], 1)
    return bytes(ids[0].tolist()).decode("utf-8", "replace")


def serving_table(device: torch.device) -> Table:
    table = Table("op", "served by", "why not the others", title="what serves each op")
    for op in ("linear", "gated_linear", "rms_norm"):
        decision = ops.explain(op, device=device)
        refused = [f"{v.impl.id}: {v.refusals[0]}" for v in decision.verdicts if v.refusals]
        lower = [
            f"{v.impl.id}: rows vary with shape" if not v.impl.shape_invariant
            else f"{v.impl.id}: lower priority"
            for v in decision.verdicts if v.accepted and v.entry is not decision.chosen
        ]  # fmt: skip
        served = decision.chosen.impl.id if decision.chosen else "nothing"
        table.add_row(op, f"[bold green]{served}[/]", escape("\n".join(refused + lower)))
    return table


def sparkline(values: list[float], width: int = 60) -> str:
    """The values as one line of bars."""
    step = max(len(values) // width, 1)
    means = [sum(values[i : i + step]) / len(values[i : i + step])
             for i in range(0, len(values), step)]  # fmt: skip
    low, high = min(means), max(means)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (m - low) / (high - low or 1))] for m in means)


def conform(backend: str, report: Path) -> bool | None:
    """A short conformance pass; None if the suite is not installed."""
    try:
        import accel_conformance
    except ModuleNotFoundError:
        return None
    return accel_conformance.run(backend, report=report, dtypes=["float32"]) == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seconds", type=float, default=90, help="train no longer than this")
    parser.add_argument("--report", type=Path, default=Path("out/demo"))
    args = parser.parse_args()
    console = Console()
    warnings.showwarning = lambda message, category, *rest, **more: console.print(
        f"[yellow]{category.__name__}[/]: {escape(str(message))}", highlight=False
    )
    warnings.simplefilter("always", AccelWarning)

    start = time.perf_counter()
    choice = selection.choose()
    acc = choice.accelerator
    console.print(f"accelerator: [bold green]{acc.name}[/] ({choice.reason}): {escape(repr(acc))}")
    if acc.supports("peak_memory_stats"):
        acc.reset_peak_memory_stats()  # counts from here on

    torch.manual_seed(0)
    config = Config()
    device = acc.device()
    model = ByteModel(config).to(device)
    data = torch.frombuffer(bytearray(library_source()), dtype=torch.uint8).long()
    count = sum(p.numel() for p in model.parameters())
    console.print(
        f"model: {count / 1e6:.1f} M parameters; text: {len(data) / 1e6:.1f} MB of Python"
    )

    with torch.no_grad():
        model(data[None, : config.context].to(device))  # compiles and binds what is needed
    console.print(serving_table(device))
    trained = time.perf_counter()
    losses = train(model, data, config, args.steps, args.seconds, device, console)
    seconds = time.perf_counter() - trained
    console.print(f"loss {sparkline(losses)}")

    console.print(Panel(escape(sample(model, b"def read(self, ", 200, device)), title="it writes"))
    passed = conform(acc.name, args.report)

    last = sum(losses[-20:]) / len(losses[-20:])
    table = Table("what", "figure", title="done")
    table.add_row("backend", f"{acc.name} on {acc.properties().name}")
    table.add_row("loss", f"{losses[0]:.2f} -> {last:.2f} nats per byte")
    rate = len(losses) * config.batch * config.context / seconds
    table.add_row("training", f"{len(losses)} steps, {rate:,.0f} bytes/s")
    if acc.supports("peak_memory_stats"):
        table.add_row("peak memory", f"{acc.max_memory_allocated() / 2**20:.0f} MiB of tensors")
    verdict = {None: "not installed", True: "[green]passed[/]", False: "[bold red]failed[/]"}
    table.add_row("conformance", verdict[passed])
    if passed is not None:
        table.add_row("report", str((args.report / "report.html").resolve()))
    table.add_row("took", f"{time.perf_counter() - start:.0f} s")
    console.print(table)
    return 0 if last < losses[0] and passed is not False else 1


if __name__ == "__main__":
    raise SystemExit(main())
