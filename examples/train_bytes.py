"""The main job, start to end: pick a device, train, generate with the same weights, prove.

A byte-level Llama of transformers learns Python from the standard library's own source. The hybrid
engine trains it and generates from it, through the kernels of the backend in use; nothing here
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
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import accel
from accel import ops, selection
from accel.errors import AccelWarning

PROMPTS = (b"def read(self, ", b"class ", b"import os\n", b"    if not ", b"# This module ")


@dataclass(frozen=True)
class Config:
    context: int = 128  # bytes a training row has
    batch: int = 16
    rate: float = 3e-3
    new: int = 160  # bytes generated


def byte_model() -> LlamaForCausalLM:
    """A Llama whose tokens are bytes."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=128, intermediate_size=344, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def library_source(limit: int = 4_000_000) -> bytes:
    """The standard library's own modules, in a fixed shuffled order."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(0).shuffle(files)
    return b"\n\n".join(file.read_bytes() for file in files)[:limit]


def batches(data: Tensor, c: Config, generator: torch.Generator) -> Tensor:
    starts = torch.randint(len(data) - c.context, (c.batch,), generator=generator)
    return data[starts[:, None] + torch.arange(c.context)]


def train(
    engine: accel.HybridEngine, data: Tensor, c: Config, steps: int, seconds: float,
    device: torch.device, console: Console,
) -> list[float]:  # fmt: skip
    """Train for ``steps``, or for ``seconds`` where the machine is slower than that; return the
    loss of every step, in nats per byte."""
    assert engine.optimizer is not None
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
            for group in engine.optimizer.param_groups:
                group["lr"] = c.rate * learning_rate(done)
            ids = batches(data, c, generator).to(device)
            loss = engine(ids, labels=ids).loss
            engine.backward(loss)
            nn.utils.clip_grad_norm_(engine.model.parameters(), 1.0)
            engine.step()
            losses.append(loss.item())
            recent = sum(losses[-20:]) / len(losses[-20:])
            progress.update(task, advance=1, loss=f"loss {recent:.3f} nats/byte")
            if not console.is_terminal and (step + 1) % max(steps // 10, 1) == 0:
                console.print(f"step {step + 1}/{steps}: loss {recent:.3f} nats/byte")
    return losses


def learning_rate(done: float) -> float:
    """Share of the full rate after a share of the training: warm-up, then half a cosine."""
    return min(done / 0.05, 1.0) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Exactness:
    """What generate said of its tokens beside what training says of them."""

    tokens: int
    difference: float  # largest of the log-probabilities
    alone: bool  # each prompt alone makes the same bytes as in the batch


def generate(
    engine: accel.HybridEngine, c: Config, device: torch.device
) -> tuple[list[str], Exactness]:
    """Answers to prompts of several lengths, and how exact their log-probabilities are."""
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in PROMPTS], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS], device=device)
    settings = {"max_new_tokens": c.new, "do_sample": True, "temperature": 0.7, "seed": 1}
    roll = engine.generate(ids, mask, return_logprobs=True, **settings)
    trained = engine.logprobs(roll.sequences, roll.attention_mask)  # what a training step has
    difference = (trained[:, -c.new :] - roll.logprobs).abs().max().item()
    alone = all(
        engine.generate(row[None, -len(p) :], **settings)[0, len(p) :].equal(made[longest:])
        for p, row, made in zip(PROMPTS, ids, roll.sequences)
    )
    texts = [bytes(row[mask.sum(1).max() - len(p) :].tolist()).decode("utf-8", "replace")
             for p, row in zip(PROMPTS, roll.sequences)]  # fmt: skip
    return texts, Exactness(roll.logprobs.numel(), difference, alone)


def serving_table(engine: accel.HybridEngine, device: torch.device) -> Table:
    assert engine.plan is not None
    table = Table("op", "served by", "why not the others", title="what serves each op")
    for op in engine.plan.served_by:
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
    """A short conformance pass: the ops, and the engine on this architecture. None if the suite is
    not installed."""
    try:
        import accel_conformance
    except ModuleNotFoundError:
        return None
    cases = ["ops/*", "engine/llama/*"]  # of the engine's architectures all would take minutes
    return accel_conformance.run(backend, report=report, dtypes=["float32"], cases=cases) == 0


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
    model = byte_model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, betas=(0.9, 0.95))
    engine = accel.HybridEngine(model, optimizer)
    data = torch.frombuffer(bytearray(library_source()), dtype=torch.uint8).long()
    count = sum(p.numel() for p in model.parameters())
    console.print(
        f"model: {count / 1e6:.1f} M parameters; text: {len(data) / 1e6:.1f} MB of Python"
    )
    with torch.no_grad():
        engine(data[None, : config.context].to(device))  # compiles and binds what is needed
    console.print(serving_table(engine, device))

    losses = train(engine, data, config, args.steps, args.seconds, device, console)
    console.print(f"loss {sparkline(losses)}")
    texts, exactness = generate(engine, config, device)
    for text in texts[:2]:
        console.print(Panel(escape(text), title="it writes"))
    passed = conform(acc.name, args.report)

    last = sum(losses[-20:]) / len(losses[-20:])
    table = Table("what", "figure", title="done")
    table.add_row("backend", f"{acc.name} on {acc.properties().name}")
    table.add_row("loss", f"{losses[0]:.2f} -> {last:.2f} nats per byte")
    stats = engine.stats()
    seconds = sum(stats[phase]["seconds"] for phase in ("forward", "backward", "step"))
    rate = len(losses) * config.batch * config.context / seconds
    table.add_row("training", f"{len(losses)} steps, {rate:,.0f} bytes/s")
    table.add_row("generating", f"{stats['generate']['tokens_per_second']:,.0f} bytes/s")
    exact = exactness.difference == 0 and exactness.alone
    table.add_row(
        "exactness",
        f"[{'green' if exact else 'bold red'}]max |difference| of log-probabilities between "
        f"generating and training = {exactness.difference:g}[/] over {exactness.tokens} bytes",
    )
    alone = "the same" if exactness.alone else "[bold red]something else[/]"
    table.add_row("a prompt alone", f"writes {alone} as in the batch")
    if acc.supports("peak_memory_stats"):
        table.add_row("peak memory", f"{acc.max_memory_allocated() / 2**20:.0f} MiB of tensors")
    verdict = {None: "not installed", True: "[green]passed[/]", False: "[bold red]failed[/]"}
    table.add_row("conformance", verdict[passed])
    if passed is not None:
        table.add_row("report", str((args.report / "report.html").resolve()))
    table.add_row("took", f"{time.perf_counter() - start:.0f} s")
    console.print(table)
    return 0 if last < losses[0] and exact and passed is not False else 1


if __name__ == "__main__":
    raise SystemExit(main())
