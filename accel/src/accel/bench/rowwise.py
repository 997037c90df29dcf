"""Cases of ops that go through rows one by one, beside what one writes for them in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.bench.case import Arguments, Case
from accel.bench.products import values
from accel.bench.sizes import Draw, Size

P = 0.1  # of dropout
ROWWISE: dict[str, Any] = {"product": False, "compiled": True}


def rms_norm(s: Size) -> Iterator[Case]:
    yield Case(
        "rms_norm", s, f"{s.rows}x{s.width}",
        lambda draw: (draw.x(s.rows, s.width), draw.vector(s.width), 1e-6),
        lambda x, w, eps: F.rms_norm(x, w.shape, w, eps), "F.rms_norm", **ROWWISE,
    )  # fmt: skip


def layer_norm(s: Size) -> Iterator[Case]:
    yield Case(
        "layer_norm", s, f"{s.rows}x{s.width}",
        lambda draw: (draw.x(s.rows, s.width), draw.vector(s.width), draw.vector(s.width), 1e-5),
        lambda x, w, b, eps: F.layer_norm(x, w.shape, w, b, eps), "F.layer_norm", **ROWWISE,
    )  # fmt: skip


def add_norm(s: Size) -> Iterator[Case]:
    def make(draw: Draw) -> Arguments:
        x, residual = (draw.x(s.rows, s.width) for _ in range(2))
        return x, residual, draw.vector(s.width), None, "rms", 1e-5

    def plain(
        x: Tensor, residual: Tensor, w: Tensor, b: Any, kind: str, eps: float
    ) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, w.shape, w, eps), total

    yield Case("add_norm", s, f"{s.rows}x{s.width}", make, plain, "+, F.rms_norm", "rms", **ROWWISE)


def bias_act(s: Size) -> Iterator[Case]:
    for act, plain in (("gelu", F.gelu), ("silu", F.silu)):
        yield Case(
            "bias_act", s, f"{s.rows}x{s.inner}",
            lambda draw, act=act: (draw.x(s.rows, s.inner), draw.vector(s.inner), act),  # type: ignore[misc]
            lambda x, b, act, plain=plain: plain(x + b), f"+, F.{act}", act, **ROWWISE,
        )  # fmt: skip


def softmax(s: Size) -> Iterator[Case]:
    yield Case(
        "softmax", s, f"{s.rows}x{s.width}", lambda draw: (draw.x(s.rows, s.width), None, 0.125),
        lambda x, mask, scale: torch.softmax(x * scale, -1), "*, torch.softmax", "scaled",
        **ROWWISE,
    )  # fmt: skip


def dropout_add(s: Size) -> Iterator[Case]:
    if s.steps:
        return

    def make(draw: Draw) -> Arguments:
        x, residual = (draw.x(s.rows, s.width) for _ in range(2))
        return x, residual, draw.vector(s.width), draw.whole(3), None, P

    yield Case(
        "dropout_add", s, f"{s.rows}x{s.width}", make,
        lambda x, residual, b, *_: residual + F.dropout(x + b, P), "+, F.dropout, +", f"p = {P}",
        random=True, **ROWWISE,
    )  # fmt: skip


def embedding(s: Size) -> Iterator[Case]:
    def make(draw: Draw) -> Arguments:
        return draw.ids(s.vocabulary, s.rows), draw.weight(s.vocabulary, s.width)

    yield Case(
        "embedding", s, f"{s.rows} of {s.vocabulary}x{s.width}", make, F.embedding, "F.embedding",
        product=False,
    )  # fmt: skip


def logprob(s: Size) -> Iterator[Case]:
    rows = min(s.rows, 256)

    def make(draw: Draw) -> Arguments:
        ids = draw.ids(s.vocabulary, rows)
        return draw.x(rows, s.vocabulary), ids, None, None, 1.0, None, 1.0

    yield Case(
        "logprob", s, f"{rows}x{s.vocabulary}", make, lambda x, ids, *_: values(x, ids),
        "log_softmax, gather", "of logits", **ROWWISE,
    )  # fmt: skip


def rotary(s: Size) -> Iterator[Case]:
    def make(draw: Draw) -> Arguments:
        angle = torch.rand(s.rows, s.head // 2, generator=draw.generator)
        angle = angle.to(draw.wide).to(draw.device)
        return draw.x(s.rows, s.heads, s.head), angle.cos(), angle.sin(), False

    def plain(q: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        first, second = q.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
        return q * _whole(cos, q) + turned * _whole(sin, q)

    yield Case(
        "rotary", s, f"{s.rows}x{s.heads}x{s.head}", make, plain, "chunk, cat, *, +",
        frozen=("cos", "sin"), **ROWWISE,
    )  # fmt: skip


def _whole(table: Tensor, q: Tensor) -> Tensor:
    return torch.cat((table, table), -1).unsqueeze(1).to(q.dtype)
