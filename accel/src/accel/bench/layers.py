"""Cases of layers, forward and backward, beside torch's modules with the same weights.

Time, and memory at a step's highest point, are what they differ from torch's in; ``goals`` are what
ours promise of both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from accel import layers, ops
from accel.accelerator import Accelerator
from accel.bench.contest import (
    IMPLEMENTATION,
    PLAIN,
    SERVES,
    Contender,
    Contest,
    Goal,
    Refused,
    Work,
    said,
    upstream_of,
)
from accel.bench.sizes import Draw, Size
from accel.contracts import CONTRACTS, Tolerance
from accel.contracts.checks import WIDE

LARGE = 131072  # the vocabulary from which a loss in tiles promises what it holds
Call = Callable[[], Any]
# Who takes part: name, kind, how to make the call and the tensors whose gradients are asked.
Entrant = tuple[str, str, Callable[[], tuple[Call, Sequence[Tensor]]]]


@dataclass(frozen=True)
class Entry:
    """Who takes part, and what all must compute: a result and the gradient of its input."""

    entrants: Sequence[Entrant]
    wanted: Callable[[], tuple[Tensor, ...]] | None


@dataclass(frozen=True)
class LayerCase:
    """A layer at a size; ``over`` is the policy its ops are resolved by, and ``like`` the op whose
    tolerance it has."""

    op: str
    size: Size
    shape: str
    text: str
    enter: Callable[[Draw], Entry]
    like: str
    variant: str = ""
    over: str | None = None
    flops: int | None = None
    goals: Sequence[Goal] = ()
    patience: float = 10.0  # seconds of a contender: what is promised is a hundredth or two
    backward: bool = True

    @property
    def name(self) -> str:
        variant = f" ({self.variant})" if self.variant else ""
        return f"{self.op}{variant} {self.size.name}, backward"

    def tolerance(self, dtype: torch.dtype) -> Tolerance:
        return CONTRACTS[self.like].tolerance[dtype]

    def contest(self, dtype: torch.dtype, accelerator: Accelerator) -> Contest:
        context = _context(self.over)
        entry = context.run(self.enter, Draw(dtype, accelerator.device()))
        found: list[Contender] = []
        refused: list[Refused] = []
        for name, kind, make in entry.entrants:
            try:
                call, leaves = context.run(make)
                found.append(Contender(name, kind, [call], leaves, context))
            except Exception as error:
                refused.append(Refused(name, kind, said(error)))
        work = Work(None, self.flops, cold=False)
        return Contest(found, refused, work, entry.wanted, memory=True, patience=self.patience)


def _context(over: str | None) -> Context:
    with ops.use(over, exact=False if over else None):
        return copy_context()


def of_module(module: nn.Module, x: Tensor) -> tuple[Call, Sequence[Tensor]]:
    return partial(module, x), [x, *module.parameters()]


def like(module: nn.Module, x: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """What a torch module and the gradient of its input are, in float64."""

    def wanted() -> tuple[Tensor, ...]:
        wide, inputs = copy.deepcopy(module).double(), x.detach().double().requires_grad_()
        return Contender("", PLAIN, [partial(wide, inputs)], [inputs]).results()

    return wanted


def _linear(draw: Draw, k: int, n: int) -> nn.Linear:
    made = nn.Linear(k, n, device=draw.device, dtype=draw.dtype)
    with torch.no_grad():
        made.weight.copy_(draw.weight(n, k))
    return made


def zero3(s: Size) -> Iterator[LayerCase]:
    kind = layers.LinearModuleForZeroStage3
    yield from _linears(s, kind.__name__, kind.from_linear, 1.02)


def tiled_linear(s: Size) -> Iterator[LayerCase]:
    kind = layers.TiledLinear
    make = partial(kind.from_linear, in_splits=2, out_splits=4)
    yield from _linears(s, kind.__name__, make, 1.03)


def _linears(
    s: Size, name: str, kind: Callable[[nn.Linear], nn.Module], allowed: float
) -> Iterator[LayerCase]:
    """A kind of linear layer over torch's product, and over the one that serves."""
    batch, rows = 4, max(s.rows // 8, 1)

    def enter(draw: Draw) -> Entry:
        plain = _linear(draw, s.width, s.inner)
        x = draw.x(batch, rows, s.width).requires_grad_()
        entrants = (
            (name, SERVES, lambda: of_module(kind(plain), x)),
            ("Linear", IMPLEMENTATION, lambda: of_module(layers.Linear.from_linear(plain), x)),
            ("nn.Linear", PLAIN, lambda: of_module(plain, x)),
        )
        return Entry(entrants, like(plain, x))

    for product, order in (("torch's product", "*=torch"), ("what serves", None)):
        yield LayerCase(
            name, s, f"{batch}x{rows}x{s.width} -> {s.inner}", "nn.Linear", enter, "linear",
            f"over {product}", order, 6 * batch * rows * s.width * s.inner,
            [Goal("nn.Linear", "time", allowed)] if order else (),
        )  # fmt: skip


class Mlp(nn.Module):
    """A gated MLP as models write it."""

    def __init__(self, draw: Draw, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (_linear(draw, width, inner) for _ in range(2))
        self.down_proj = _linear(draw, inner, width)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return found


def tiled_mlp(s: Size) -> Iterator[LayerCase]:
    rows, inner, tile_rows = s.rows, s.inner // 2, max(s.rows // 8, 1)

    def enter(draw: Draw) -> Entry:
        plain, x = Mlp(draw, s.width, inner), draw.x(rows, s.width).requires_grad_()

        def tiled() -> tuple[Call, Sequence[Tensor]]:
            return of_module(layers.TiledMLP.from_mlp(plain, tile_rows=tile_rows), x)

        def checkpointed() -> tuple[Call, Sequence[Tensor]]:
            call = partial(checkpoint, plain, x, use_reentrant=False)
            return call, [x, *plain.parameters()]

        entrants = (
            ("TiledMLP", SERVES, tiled),
            ("all rows at once", PLAIN, lambda: of_module(plain, x)),
            ("all rows, checkpointed", PLAIN, checkpointed),
        )
        return Entry(entrants, like(plain, x))

    yield LayerCase(
        "TiledMLP", s, f"{rows}x{s.width} -> {inner}, {tile_rows} rows a tile", "nn.Linear, F.silu",
        enter, "tiled_mlp", flops=18 * rows * s.width * inner,
    )  # fmt: skip


def logits(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w).to(WIDE[x.dtype])


def losses(s: Size) -> Iterator[LayerCase]:
    """A head's mean loss, and log-probabilities with a gradient for each."""
    kinds: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], float]] = {
        "mean loss": (
            layers.tiled_cross_entropy,
            lambda x, w, ids: F.cross_entropy(logits(x, w), ids), 1.1,
        ),
        "log-probabilities": (
            lambda x, w, ids: -ops.logprob(x, ids, w)[0],
            lambda x, w, ids: F.cross_entropy(logits(x, w), ids, reduction="none"), 1.4,
        ),
    }  # fmt: skip
    for what, (tiled, plain, allowed) in kinds.items():

        def enter(
            draw: Draw, tiled: Any = tiled, plain: Any = plain, mean: bool = what == "mean loss"
        ) -> Entry:
            x, ids = draw.x(s.rows, s.width).requires_grad_(), draw.ids(s.vocabulary, s.rows)
            w = draw.weight(s.vocabulary, s.width).requires_grad_()

            entrants = (
                ("tiled", SERVES, lambda: (partial(tiled, x, w, ids), [x, w])),
                ("all logits", PLAIN, lambda: (partial(plain, x, w, ids), [x, w])),
            )
            return Entry(entrants, partial(_loss, x.detach(), w.detach().double(), ids, mean))

        promised = (Goal("all logits", "time", allowed), Goal("all logits", "memory", 0.1))
        yield LayerCase(
            "tiled_cross_entropy", s, f"{s.rows}x{s.width} -> {s.vocabulary}",
            "F.linear, F.cross_entropy", enter, "logprob", what,
            flops=6 * s.rows * s.width * s.vocabulary,
            goals=promised if s.vocabulary >= LARGE else (),
        )  # fmt: skip


def _loss(x: Tensor, w: Tensor, ids: Tensor, mean: bool) -> tuple[Tensor, ...]:
    """The loss and the gradient of x in float64, some rows at a time: at a vocabulary of 131072
    all logits of 2048 would be 2 GiB, three times over."""
    share = 1 / len(ids) if mean else 1.0
    upstream = upstream_of(x.new_empty(()) if mean else x.new_empty(len(ids))).double()
    found = []
    for rows, some, up in zip(*(t.split(256) for t in (x, ids, upstream.expand(len(ids))))):
        rows = rows.double().requires_grad_()
        values = F.cross_entropy(F.linear(rows, w), some, reduction="none")
        found.append((values.detach(), torch.autograd.grad(values, rows, up * share)[0]))
    values, gradients = map(torch.cat, zip(*found))
    return values.mean() if mean else values, gradients
