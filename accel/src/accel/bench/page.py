"""bench.html: a run on one page that needs nothing outside it, with its roofline pictures.

Plain HTML and SVG without a script; what plugins say is text, and the page's own policy lets
nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from accel.bench import console, roofline
from accel.bench.contest import SERVES
from accel.bench.sizes import SIZES

Row = dict[str, Any]

WIDE, NARROW = (1040, 560), (380, 460)  # a picture for desks, and one for hands


def page(report: Row) -> str:
    style = _file("page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    machine = report["machine"]
    return Template(_file("page.html")).substitute(
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'",
        style=style,
        device=escape(machine["device"]),
        machine=escape(
            f"{machine['threads']} threads, torch {machine['torch']}, accel {machine['accel']}, "
            f"{machine['platform']}"
        ),
        pictures="".join(_pictures(report)),
        cases="".join(_cases(report)),
        ceilings="".join(map(_ceiling, report["ceilings"])),
        absent="".join(f"<li>{escape(line)}</li>" for line in console.absent(report["cases"])),
        method="".join(
            f"<dt>{escape(what)}</dt><dd>{escape(how)}</dd>"
            for what, how in report["method"].items()
        ),
    )  # fmt: skip


def _pictures(report: Row) -> Iterator[str]:
    for dtype in dict.fromkeys(row["dtype"] for row in report["cases"]):
        dots = roofline.dots(report, dtype)
        if not dots:
            continue
        drawn = (
            f'<div class="{kind}">{roofline.Picture(roof, dots, *size).svg(dtype)}</div>'
            for roof in [roofline.roof(report, dtype)]
            for kind, size in (("wide", WIDE), ("narrow", NARROW))
        )
        sizes = dict.fromkeys(dot.size for dot in dots)
        keys = "".join(
            f'<li class="{escape(size)}"><i></i>{escape(size)}: '
            f"{escape(SIZES[size].meaning)}</li>" for size in sizes
        )  # fmt: skip
        yield (
            f"<figure><h2>{console.SHORT.get(dtype, dtype)}</h2>{''.join(drawn)}"
            f'<ul class="legend">{keys}<li class="hollow"><i></i>the fastest peer</li></ul>'
            "</figure>"
        )


def _cases(report: Row) -> Iterator[str]:
    for row in report["cases"]:
        yield f'<tbody><tr class="case"><th colspan="7" scope="rowgroup">{_title(row)}</th></tr>'
        for contender in sorted(row["contenders"], key=lambda c: c["kind"] != SERVES):
            yield _line(contender)
        for line in console.beside_time(row):
            yield f'<tr class="more"><td colspan="7">{escape(line)}</td></tr>'
        yield "</tbody>"


def _title(row: Row) -> str:
    return f"{escape(row['op'])} <small>{escape(console.about(row))}</small>"


def _line(contender: Row) -> str:
    seconds, ratio = contender["seconds"], contender["ratio"]
    kind = ""
    told = ("", "")
    if ratio:
        kind = "won" if ratio["low"] > 1 else "lost" if ratio["high"] < 1 else "even"
        told = (f"{ratio['median']:.2f}x", f"{ratio['low']:.2f} to {ratio['high']:.2f}")
    share = f"{contender['share']:.0%} of {contender['binds']}" if contender["share"] else ""
    cells = (
        f"{console.duration(seconds['median'])} <small>± {console.spread(contender)}</small>",
        console.rate(contender["gflops"]), console.rate(contender["gbytes"]), share,
        f"<b>{told[0]}</b>", f"<small>{told[1]}</small>",
    )  # fmt: skip
    row = "serves" if contender["kind"] == SERVES else kind
    text = escape(contender["name"]).replace(".", ".<wbr>").replace("_", "_<wbr>")
    name = f'<th scope="row">{text}</th>'
    return f'<tr class="{row}">{name}{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _ceiling(found: Row) -> str:
    unit = "GB/s" if found["what"] in ("read", "copy") else "GFLOP/s"
    best = ' class="best"' if found["best"] else ""
    return (
        f'<tr{best}><th scope="row">{escape(found["what"])}</th>'
        f"<td>{console.rate(found['rate'] / 1e9)} {unit}</td>"
        f"<td>{escape(found['method'])}</td></tr>"
    )


def _file(name: str) -> str:
    return files(__package__).joinpath("html").joinpath(name).read_text(encoding="utf-8")
