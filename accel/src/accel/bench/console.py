"""What a run found, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from accel import arguments
from accel.bench.contest import SERVES
from accel.contracts.checks import name_of

Row = dict[str, Any]
SHORT = {name_of(dtype): short for short, dtype in arguments.SHORT.items()}


COLUMNS = {
    "": 31, "time": 8, "±": 4, "GFLOP/s": 7, "GB/s": 6, "of ceiling": 11, "faster": 7,
    "quartiles": 11,
}  # fmt: skip
WIDTH = sum(COLUMNS.values()) + 2 * len(COLUMNS)


def screen() -> Console:
    """As wide as the tables are, if the terminal is not: better that it breaks lines than that
    figures are cut off."""
    found = Console()
    return found if found.width >= WIDTH else Console(width=WIDTH, soft_wrap=True)


def show(report: Row, console: Console) -> None:
    """Machine and ceilings, a table of cases, and who was not measured."""
    machine = report["machine"]
    console.print(
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}, accel "
        f"{machine['accel']}; medians ± half the quartiles' distance",
        highlight=False,
    )  # fmt: skip
    console.print(_ceilings(report["ceilings"]), highlight=False)
    for dtype, why in report["left_out"].items():
        console.print(f"{dtype} was left out: {escape(why)}", highlight=False)
    for part in cases(report["cases"]):
        console.print(part, highlight=False)
    for line in absent(report["cases"]):
        console.print(escape(line), highlight=False)


def _ceilings(measured: list[Row]) -> str:
    best = {c["what"]: c for c in measured if c["best"]}
    read, copy = (best.pop(what)["rate"] / 1e9 for what in ("read", "copy"))
    products = ", ".join(
        f"{SHORT.get(what, what)} {c['rate'] / 1e9:.0f} GFLOP/s ({c['method']})"
        for what, c in best.items()
    )
    return f"ceilings: memory read {read:.1f} GB/s, copied {copy:.1f}; products {products}"


def cases(rows: list[Row]) -> Iterator[RenderableType]:
    """A few lines for each case: what it is; what serves it; the peers, and how many times faster
    than they it is."""
    for op, group in groupby(rows, key=lambda row: row["op"]):
        for at, row in enumerate(group):
            yield f"\n[bold]{op}[/] {escape(about(row))}" if at == 0 else escape(about(row))
            yield _table(row, header=at == 0)
            yield from (f"  [dim]{escape(line)}[/]" for line in beside_time(row))


def about(row: Row) -> str:
    """The variant, the size and the shape."""
    passes = "forward and backward" if row["backward"] else f"from {row['from']}"
    dtype = SHORT.get(row["dtype"], row["dtype"])
    parts = (row["variant"], row["size"], dtype, row["shape"], passes)
    return ", ".join(part for part in parts if part)


def beside_time(row: Row) -> Iterator[str]:
    """Of a layer the memory of a step, and how it stands beside what is promised of it."""
    peaks = {c["name"]: c["peak_bytes"] for c in row["contenders"] if c["peak_bytes"] is not None}
    if peaks:
        told = ", ".join(f"{name} {_digits(peak / 2**20)}" for name, peak in peaks.items())
        yield f"MiB at a step's highest point, above arguments and gradients: {told}"
    for goal in row["goals"]:
        met = "" if goal["is"] <= goal["at_most"] else ": more than promised"
        yield (
            f"{goal['is']:.2f} of the {goal['what']} of {goal['beside']}, at most "
            f"{goal['at_most']:g} are promised{met}"
        )


def _table(row: Row, *, header: bool) -> Table:
    table = Table(box=None, show_header=header, header_style="dim", padding=(0, 1), pad_edge=False)
    for name, width in COLUMNS.items():
        left = not name
        table.add_column(name, width=width, justify="left" if left else "right", no_wrap=not left)
    for contender in sorted(row["contenders"], key=lambda c: c["kind"] != SERVES):
        table.add_row(*_line(contender, row))
    return table


def _line(contender: Row, row: Row) -> Iterator[str]:
    seconds, ratio = contender["seconds"], contender["ratio"]
    serves = contender["kind"] == SERVES
    yield f"  [bold]{escape(contender['name'])}[/]" if serves else f"  {escape(contender['name'])}"
    yield duration(seconds["median"])
    yield spread(contender)
    yield rate(contender["gflops"])
    yield rate(contender["gbytes"])
    share = contender["share"]
    yield f"{share:.0%} {contender['binds']}" if share else ""
    if ratio is None:
        yield from ("", "")
        return
    colour = "green" if ratio["low"] > 1 else "red" if ratio["high"] < 1 else "yellow"
    yield f"[{colour}]{ratio['median']:.2f}x[/]"
    yield f"[dim]{ratio['low']:.2f}-{ratio['high']:.2f}[/]"


def rate(value: float | None) -> str:
    return "" if value is None else _digits(value)


def _digits(value: float) -> str:
    """Two or three of them."""
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}" if value < 1 else f"{value:.3g}"


def spread(contender: Row) -> str:
    """Half the quartiles' distance, as a share of the median."""
    if len(contender["rounds"]) == 1:
        return "once"
    seconds = contender["seconds"]
    return f"{(seconds['high'] - seconds['low']) / 2 / seconds['median']:.0%}"


def duration(seconds: float) -> str:
    """With three digits, in the unit that fits."""
    unit, size = next(u for u in (("s", 1.0), ("ms", 1e-3), ("µs", 0.0)) if seconds >= u[1])
    return f"{_digits(seconds / (size or 1e-6))} {unit}"


def absent(rows: list[Row]) -> list[str]:
    """Who was not measured and why, each reason once, with the ops it is about."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for refused in row["refused"]:
            ops = found.setdefault((refused["name"], refused["reason"]), [])
            ops += [row["op"]] if row["op"] not in ops else []
    return [f"not measured: {name}, {', '.join(ops)}: {why}" for (name, why), ops in found.items()]
