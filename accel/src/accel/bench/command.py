"""``accel bench``: the command line of a run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from accel import arguments, selection
from accel.bench import console, page, run
from accel.bench.cases import cases
from accel.bench.sizes import SIZES

DEFAULT_SIZES = "decode,prefill"
LINES = 30.0  # seconds between lines of progress


def bench(
    ops: Annotated[
        str | None, typer.Option(help="Only these ops and layers, comma-separated.")
    ] = None,
    dtypes: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, fp16 or fp64; default: fp32, and bf16 where torch is fast."),
    ] = None,
    sizes: Annotated[str, typer.Option(help=f"Of {', '.join(SIZES)}.")] = DEFAULT_SIZES,
    backward: Annotated[
        bool, typer.Option("--backward", help="Forward and backward too, at every size.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="A backend; default: the chosen one.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the host.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of all contenders in turn.")] = run.ROUNDS,
    data: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder for bench.html, with a roofline picture.")
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Name the cases, run none.")] = False,
) -> None:
    """Every op and layer beside its peers, against ceilings measured in the same run."""
    names = arguments.names(ops)
    chosen = list(cases(names, arguments.names(sizes) or [], backward=backward))
    if list_only:
        print("\n".join(f"{case.name}: {case.shape}, beside {case.text}" for case in chosen))
        return
    wanted = [arguments.dtype(name) for name in arguments.names(dtypes) or []]
    screen = console.screen()
    with (
        (
            selection.use_accelerator(device)
            if device
            else nullcontext(selection.get_accelerator())
        ) as accelerator,
        _threads(threads),
        _progress(screen) as progress,
    ):
        found = run.bench(accelerator, chosen, wanted, rounds=rounds, progress=progress)
    console.show(found, screen)
    if data:
        _write(data, json.dumps(found, indent=1), screen)
    if report:
        _write(report / "bench.html", page.page(found), screen)
    raise typer.Exit(0 if run.healthy(found) else 1)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _progress(screen: Console) -> Iterator[run.Progress]:
    """A bar that says what is measured now, gone when all is; where nobody watches, a line of that
    from time to time."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    columns: Any = (
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("")

        def progress(done: int, of: int, what: str) -> None:
            shown.update(task, completed=done, total=of, description=what)

        yield progress


def _lines() -> run.Progress:
    last = float("-inf")

    def progress(done: int, of: int, what: str) -> None:
        nonlocal last
        if time.monotonic() >= last + LINES:
            last = time.monotonic()
            print(f"accel bench: {done} of {of} measured, now {what}", file=sys.stderr, flush=True)

    return progress


def _write(file: Path, text: str, screen: Console) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    screen.print(f"written: {file}", highlight=False, soft_wrap=True)
