"""The main job, start to end: pick a device, read, improve by GRPO, compare, prove.

A byte-level Llama of transformers reads the functions of Python's standard library
(python_bytes.py), then is rewarded for the statements it writes (grpo.py, whose loops these are).
The hybrid engine trains it and generates from it, through the kernels of the backend in use;
nothing here names a device. Run it with ``make demo``, or ``python examples/demo.py``.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpo
import python_bytes
import torch
from curve import svg
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

import accel
from accel import ops, selection
from accel.accelerator import Accelerator
from accel.bench.timing import Clock, in_rounds, ratio
from accel.errors import AccelWarning

HELD_OUT, EACH = 64, 2  # prompts that nothing is trained on, answers to each
RECENT = 10  # steps that a figure on the way is the mean of


@dataclass(frozen=True)
class Speed:
    """Bytes a second of both, and how many times faster ours is, within the same rounds."""

    accel: float
    transformers: float
    ratio: float


@contextmanager
def progress(
    console: Console, what: str, steps: int, seconds: float
) -> Iterator[Callable[[str], None]]:
    """A bar of what is done of the steps, or of the time where that is more; where nobody watches,
    a plain line now and then. Gives what to call after each step, with what there is to tell."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
               TextColumn("{task.fields[told]}"))  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, start, count = bar.add_task(what, total=1.0, told=""), time.perf_counter(), 0

        def advance(told: str) -> None:
            nonlocal count
            count += 1
            done = max(count / steps, (time.perf_counter() - start) / seconds)
            bar.update(task, completed=min(done, 1.0), told=f"step {count}: {told}")
            if not console.is_terminal and count % max(steps // 10, 1) == 0:
                console.print(f"{what}, step {count}: {told}")

        yield advance


def recent(values: list[float]) -> float:
    return statistics.fmean(values[-RECENT:])


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


def examine(engine: accel.HybridEngine, prompts: list[bytes]) -> tuple[float, str]:
    """The mean reward on prompts that nothing is trained on, by the same random numbers every time;
    and the first answer of middling reward."""
    roll, rewards = grpo.rollout(engine, prompts, EACH, seed=0)
    found = rewards.flatten()
    row = int((found - found.median()).abs().argmin())
    made = bytes(roll.sequences[row, -grpo.NEW :].tolist())
    return found.mean().item(), (prompts[row // EACH] + made).decode("utf-8", "replace")


def alone(engine: accel.HybridEngine, prompts: list[bytes]) -> bool:
    """Whether each prompt alone is answered as in a batch, where the others pad it."""
    ids, mask = grpo.padded(prompts, engine.model.device)
    together = engine.generate(ids, mask, seed=1, **grpo.SAMPLING)
    rows = zip(prompts, ids, together)
    return all(
        engine.generate(row[None, -len(p) :], seed=1, **grpo.SAMPLING)[0, -grpo.NEW :].equal(
            made[-grpo.NEW :]
        )
        for p, row, made in rows
    )


def speed(engine: accel.HybridEngine, prompts: list[bytes], acc: Accelerator) -> Speed:
    """Beside transformers' own ``generate``, which gives no log-probabilities: same weights, same
    prompts, as many bytes."""
    theirs = copy.deepcopy(engine.model)
    accel.restore(theirs)
    ids, mask = grpo.padded(prompts, engine.model.device)
    asked = {**grpo.SAMPLING, "num_return_sequences": 4, "pad_token_id": 0}
    loops = {
        "accel": lambda _: engine.generate(ids, mask, return_logprobs=True, **asked),
        "transformers": lambda _: theirs.generate(ids, attention_mask=mask, **asked),
    }
    for loop in loops.values():
        loop(1)
    times = in_rounds(loops, Clock(acc), rounds=3, patience=10.0)
    made = len(prompts) * 4 * grpo.NEW
    rates = {name: made / statistics.median(taken) for name, taken in times.items()}
    return Speed(**rates, ratio=ratio(times["transformers"], times["accel"]).median)


def conform(backend: str, report: Path) -> bool | None:
    """A short conformance pass: of each kind of case one, in fp32. None if the suite is not
    installed."""
    try:
        import accel_conformance
    except ModuleNotFoundError:
        return None
    smoke = {"dtypes": ["float32"], "level": "smoke", "quiet": True}
    return accel_conformance.run(backend, report=report, **smoke) == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reading", type=int, default=280, help="steps of reading")
    parser.add_argument("--steps", type=int, default=80, help="steps of GRPO")
    parser.add_argument("--seconds", type=float, default=45, help="neither takes longer than this")
    parser.add_argument("--report", type=Path, default=Path("out/demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-conformance", action="store_true", help="leave the suite out")
    args = parser.parse_args()
    console = Console()
    warnings.showwarning = lambda message, category, *rest, **more: console.print(
        f"[yellow]{category.__name__}[/]: {escape(str(message))}", highlight=False
    )
    warnings.simplefilter("always", AccelWarning)
    warnings.simplefilter("ignore", SyntaxWarning)  # of what the model writes

    start = time.perf_counter()
    choice = selection.choose()
    acc = choice.accelerator
    console.print(f"accelerator: [bold green]{acc.name}[/] ({choice.reason}): {escape(repr(acc))}")
    if acc.supports("peak_memory_stats"):
        acc.reset_peak_memory_stats()  # counts from here on

    torch.manual_seed(args.seed)
    device = acc.device()
    model = python_bytes.byte_model().to(device)
    engine = accel.HybridEngine(model, config={"gradient_clipping": 1.0})
    texts, prompts = python_bytes.functions(), python_bytes.headers(python_bytes.functions())
    unseen = python_bytes.headers(python_bytes.functions(held_out=True))
    unseen = random.Random(0).sample(sorted({*unseen} - {*prompts}), HELD_OUT)
    count, size = sum(p.numel() for p in model.parameters()), sum(map(len, texts))
    console.print(f"model: {count / 1e6:.1f} M parameters; text: {size / 1e6:.1f} MB of Python")
    with torch.no_grad():
        engine(torch.zeros(1, 8, dtype=torch.int64, device=device))  # compiles what is needed
    console.print(serving_table(engine, device))

    losses: list[float] = []
    with progress(console, "reading", args.reading, args.seconds) as advance:
        for loss in python_bytes.read(engine, texts, args.reading, args.seconds):
            losses.append(loss)
            advance(f"loss {recent(losses):.3f} nats/byte")
    before, written = examine(engine, unseen)
    console.print(Panel(escape(written), title="it writes"))
    reference = accel.HybridEngine(copy.deepcopy(model))
    rewards, apart = [], []
    with progress(console, "GRPO", args.steps, args.seconds) as advance:
        for reward, difference in grpo.improve(
            engine, reference, prompts, args.steps, args.seconds, args.seed
        ):
            rewards.append(reward)
            apart.append(difference)
            advance(f"reward {recent(rewards):.3f}, max |Δ logprob| {max(apart):g}")
    after, written = examine(engine, unseen)
    console.print(Panel(escape(written), title="and after GRPO"))
    args.report.mkdir(parents=True, exist_ok=True)
    picture = args.report / "reward.svg"
    title = "GRPO: mean reward of a step's answers"
    picture.write_text(svg(rewards, before, after, title), "utf-8")
    same, rates = alone(engine, unseen[:4]), speed(engine, unseen[: grpo.PROMPTS], acc)
    passed = None if args.no_conformance else conform(acc.name, args.report)

    exact, rose = max(apart) == 0 and same, after > before
    table = Table("what", "figure", title="done")
    table.add_row("backend", f"{acc.name} on {acc.properties().name}")
    table.add_row("reading", f"{len(losses)} steps, loss {losses[0]:.2f} -> {recent(losses):.2f}")
    table.add_row(
        "reward", f"[{'green' if rose else 'bold red'}]{before:.3f} -> {after:.3f}[/] on "
        f"{HELD_OUT} prompts it was never trained on, in {len(rewards)} steps"
    )  # fmt: skip
    table.add_row("its curve", str(picture.resolve()))
    table.add_row(
        "exactness", f"[{'green' if exact else 'bold red'}]max |Δ logprob| between rollouts and "
        f"training = {max(apart):g}[/] over "
        f"{len(apart) * grpo.PROMPTS * grpo.GROUP * grpo.NEW:,} bytes"
    )  # fmt: skip
    table.add_row(
        "a prompt alone", f"is answered {'as' if same else '[bold red]not as[/]'} in a batch"
    )
    table.add_row(
        "generating", f"{rates.accel:,.0f} bytes/s, transformers {rates.transformers:,.0f}: "
        f"{rates.ratio:.1f} times as fast, with log-probabilities"
    )  # fmt: skip
    if acc.supports("peak_memory_stats"):
        table.add_row("peak memory", f"{acc.max_memory_allocated() / 2**20:.0f} MiB of tensors")
    verdict = {None: "left out", True: "[green]passed[/]", False: "[bold red]failed[/]"}
    table.add_row("conformance", verdict[passed])
    if passed is not None:
        table.add_row("report", str((args.report / "report.html").resolve()))
    table.add_row("took", f"{time.perf_counter() - start:.0f} s")
    console.print(table)
    return 0 if rose and exact and passed is not False else 1


if __name__ == "__main__":
    raise SystemExit(main())
