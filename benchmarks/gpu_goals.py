"""What gpu_check.py's stages are held against, of the rows that they wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """A figure, which should be ``at_least`` or ``at_most`` so much; None where none was found."""

    what: str
    found: float | None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def text(self) -> str:
        low = self.at_least is not None
        return f"{'>=' if low else '<='} {self.at_least if low else self.at_most:g}"

    @property
    def shown(self) -> str:
        return "-" if self.found is None else f"{self.found:.3g}"

    @property
    def met(self) -> bool | None:
        if self.found is None:
            return None
        if self.at_least is not None:
            return self.found >= self.at_least
        return self.at_most is not None and self.found <= self.at_most

    @property
    def verdict(self) -> str:
        return {None: "not measured", True: "met", False: "missed"}[self.met]


def goals(stages: Sequence[Any]) -> list[Goal]:
    """``stages`` have a ``kind``, an ``outcome`` and ``rows``."""

    def rows(kind: str) -> list[Row]:
        return [row for stage in stages if stage.kind == kind for row in stage.rows]

    def right(kind: str) -> float | None:
        """The share of the kind's checks that came to their end and were right."""
        asked = [stage for stage in stages if stage.kind == kind]
        started = any(stage.rows for stage in asked)
        return sum(stage.good for stage in asked) / len(asked) if started else None

    peers = {row["peer"]: row for row in rows("decode") if "seconds" in row}
    ours = peers.get("accel", {})
    static, eager = (_ratio(ours, peers.get(name, {})) for name in ("static", "eager"))
    plain = [r for r in rows("linear") if not r.get("variant") and r["dtype"] == "bfloat16"]
    few = _least(plain, "F.linear", lambda row: _height(row) <= 16)
    many = _least(plain, "F.linear", lambda row: _height(row) >= 128)
    layers = [row for row in rows("layer") if row.get("backward")]
    compiled = [_least(layers, name) for name in ("compiled", "BertLayer, compiled",
                                                  "torch.compile(reference)")]  # fmt: skip
    return [
        Goal("ops that pass conformance, share", right("conformance"), 1),
        Goal("policies that are exact, share", right("exactness"), 1),
        Goal("decode b=1, share of the memory's roof", ours.get("share"), 0.8),
        Goal("decode b=1, times transformers' static cache and compile", static, 1),
        Goal("decode b=1, times transformers' eager generate", eager, 1),
        Goal("linear bf16, M <= 16, least times cuBLAS", few, 1),
        Goal("linear bf16, M >= 128, least times cuBLAS", many, 0.9),
        Goal("layer, forward + backward, least times torch.compile", _smallest(compiled), 1.2),
        Goal(
            "tiled logprob, share of the memory of all logits", _memory(rows("logprob")), None, 0.1
        ),
    ]


def _ratio(ours: Row, theirs: Row) -> float | None:
    return theirs["seconds"] / ours["seconds"] if theirs and ours.get("seconds") else None


def _height(row: Row) -> int:
    return int(row["size"].partition("=")[2] or 1)


def _least(
    rows: Iterable[Row], peer: str, where: Callable[[Row], bool] = lambda row: True
) -> float | None:
    return _smallest(row["beside"].get(peer) for row in rows if "beside" in row and where(row))


def _smallest(figures: Iterable[float | None]) -> float | None:
    return min((figure for figure in figures if figure is not None), default=None)


def _memory(rows: Iterable[Row]) -> float | None:
    shares = [
        row["peak"][row["serves"]] / row["peak"]["all logits"]
        for row in rows
        if row.get("peak", {}).get("all logits") and row["serves"] in row["peak"]
    ]
    return max(shares, default=None)
