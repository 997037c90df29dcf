"""The roofline picture: flops a second over flops a byte, as SVG without anything outside it.

No point is above the roof: at the left the memory limits, at the right the products. A full dot is
what serves, a hollow one the fastest peer, and the line between them is what is won or lost. Both
are at one place of the x axis, which is the contract's and nobody's merit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from accel.bench.console import SHORT
from accel.bench.contest import SERVES

Row = dict[str, Any]

LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 40  # of the frame, in pixels
LETTER, LINE = 6.0, 13.0  # width and height of a letter of a label
# Where a label may stand beside its dot: from near to far, right and left before above and below.
ANGLES = (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90)
DISTANCES = (9, 20, 34, 50, 70)


@dataclass(frozen=True)
class Dot:
    """A case: flops a byte; GFLOP/s of what serves and of the fastest peer, if there is one."""

    name: str
    size: str
    intensity: float
    ours: float
    peer: float | None
    tells: str


@dataclass(frozen=True)
class Roof:
    """GB/s and GFLOP/s."""

    memory: float
    product: float

    @property
    def ridge(self) -> float:
        return self.product / self.memory

    def at(self, intensity: float) -> float:
        return min(self.product, self.memory * intensity)


def roof(report: Row, dtype: str) -> Roof:
    best = {c["what"]: c["rate"] / 1e9 for c in report["ceilings"] if c["best"]}
    return Roof(max(best["read"], best["copy"]), best[dtype])


def dots(report: Row, dtype: str) -> list[Dot]:
    """Of the cases that a ceiling binds, and that have a number of flops and of bytes."""
    return [
        dot
        for row in report["cases"]
        if row["dtype"] == dtype and row["bytes"] and row["flops"]
        for dot in _dot(row)
    ]


def _dot(row: Row) -> Iterator[Dot]:
    ours = next((c for c in row["contenders"] if c["kind"] == SERVES), None)
    if ours is None or not ours["share"]:
        return
    peers = [c for c in row["contenders"] if c["kind"] != SERVES]
    best = max(peers, key=lambda c: c["gflops"], default=None)
    name = f"{row['op']} {row['variant']}".strip()
    tells = f"{name}, {row['shape']}: {ours['name']} {ours['gflops']:.3g} GFLOP/s, "
    tells += f"{ours['share']:.0%} of what the {ours['binds']} allows"
    if best:
        tells += f"; {best['name']} {best['gflops']:.3g}"
    intensity = row["flops"] / row["bytes"]
    yield Dot(name, row["size"], intensity, ours["gflops"], best and best["gflops"], tells)


class Picture:
    """One roof with its dots, ``width`` by ``height`` pixels."""

    def __init__(self, roof: Roof, dots: Sequence[Dot], width: int, height: int) -> None:
        self.roof, self.dots, self.width, self.height = roof, dots, width, height
        xs = [d.intensity for d in dots] + [roof.ridge]
        ys = [y for d in dots for y in (d.ours, d.peer) if y] + [roof.product]
        self.x0, self.x1 = min(xs) / 2, max(xs) * 3
        self.y0, self.y1 = min(ys) / 2, max(ys) * 2

    def x(self, intensity: float) -> float:
        share = math.log(intensity / self.x0) / math.log(self.x1 / self.x0)
        return LEFT + share * (self.width - LEFT - RIGHT)

    def y(self, rate: float) -> float:
        share = math.log(rate / self.y0) / math.log(self.y1 / self.y0)
        return self.height - BOTTOM - share * (self.height - TOP - BOTTOM)

    def svg(self, dtype: str) -> str:
        short = SHORT.get(dtype, dtype)
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="Roofline of {short}">'
            + "".join((*self._grid(), *self._roof(short), *self._marks(), *self._labels()))
            + "</svg>"
        )

    def _grid(self) -> Iterator[str]:
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        for value in _decades(self.x0, self.x1):
            x = self.x(value)
            yield _line(x, TOP, x, bottom, "grid")
            yield _text(x, bottom + 16, f"{value:g}", "tick", "middle")
        for value in _decades(self.y0, self.y1):
            y = self.y(value)
            yield _line(LEFT, y, right, y, "grid")
            yield _text(LEFT - 6, y + 4, f"{value:g}", "tick", "end")
        yield _text(right, self.height - 6, "flop / byte", "axis", "end")
        yield _text(4, TOP - 2, "GFLOP/s", "axis", "start")

    def _roof(self, short: str) -> Iterator[str]:
        roof = self.roof
        start = max(self.x0, self.y0 / roof.memory)
        edge = [(start, roof.at(start)), (roof.ridge, roof.product), (self.x1, roof.product)]
        points = [(self.x(x), self.y(y)) for x, y in edge]
        floor = self.height - BOTTOM
        area = [*points, (points[-1][0], floor), (points[0][0], floor)]
        yield f'<polygon class="under" points="{_points(area)}"/>'
        yield f'<polyline class="roof" points="{_points(points)}"/>'
        (ax, ay), (bx, by), (cx, _) = points
        slope = math.degrees(math.atan2(by - ay, bx - ax))
        at = roof.memory * start**0.3 * roof.ridge**0.7
        x, y = self.x(at / roof.memory), self.y(at)
        told = _text(0, -7, f"memory {roof.memory:.3g} GB/s", "on-roof", "middle")
        yield f'<g transform="translate({x:.1f} {y:.1f}) rotate({slope:.2f})">{told}</g>'
        yield _text(
            cx - 4, by - 7, f"{short} products {roof.product:.0f} GFLOP/s", "on-roof", "end"
        )

    def _marks(self) -> Iterator[str]:
        for dot in self.dots:
            x, y = self.x(dot.intensity), self.y(dot.ours)
            group = f'<g class="dot {escape(dot.size)}"><title>{escape(dot.tells)}</title>'
            if dot.peer:
                y_peer = self.y(dot.peer)
                group += _line(x, y, x, y_peer, "between")
                group += f'<circle class="peer" cx="{x:.1f}" cy="{y_peer:.1f}" r="4"/>'
            yield group + f'<circle class="ours" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/></g>'

    def _labels(self) -> Iterator[str]:
        """Each at the nearest free place; where there is none the dot stays without."""
        taken = [self._box_of(dot) for dot in self.dots]
        for dot in sorted(self.dots, key=lambda d: -d.ours):
            x, y, wide = self.x(dot.intensity), self.y(dot.ours), LETTER * len(dot.name)
            for box, anchor in _places(x, y, wide):
                if self._inside(box) and not any(_overlap(box, other) for other in taken):
                    taken.append(box)
                    at = box[0] if anchor == "start" else box[2]
                    if abs(at - x) > DISTANCES[0] or abs(box[1] + LINE / 2 - y) > LINE:
                        yield _line(x, y, at, box[1] + LINE / 2, "leader")
                    yield _text(at, box[3] - 3, dot.name, "label", anchor)
                    break

    def _box_of(self, dot: Dot) -> Box:
        x = self.x(dot.intensity)
        ys = [self.y(y) for y in (dot.ours, dot.peer) if y]
        return x - 5, min(ys) - 5, x + 5, max(ys) + 5

    def _inside(self, box: Box) -> bool:
        """Within the frame and under the roof's lines, which have words on them."""
        clear = all(
            self.y(self.roof.at(self._intensity(x))) + 4 < box[1]
            for x in (box[0], box[2])
            if LEFT <= x <= self.width - RIGHT
        )
        framed = box[0] > LEFT and box[2] < self.width - 4 and box[3] < self.height - BOTTOM
        return framed and clear

    def _intensity(self, x: float) -> float:
        share = (x - LEFT) / (self.width - LEFT - RIGHT)
        return self.x0 * math.exp(share * math.log(self.x1 / self.x0))


Box = tuple[float, float, float, float]  # left, top, right, bottom


def _places(x: float, y: float, wide: float) -> Iterator[tuple[Box, str]]:
    for distance in DISTANCES:
        for angle in ANGLES:
            at = x + distance * math.cos(math.radians(angle))
            middle = y - distance * math.sin(math.radians(angle))
            left = at if abs(angle) <= 90 else at - wide
            anchor = "start" if abs(angle) <= 90 else "end"
            yield (left, middle - LINE / 2, left + wide, middle + LINE / 2), anchor


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _decades(low: float, high: float) -> Iterator[float]:
    for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
        yield 10.0**power


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
