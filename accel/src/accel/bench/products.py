"""Cases of ops that multiply by a weight, beside what one writes for them in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from accel.bench.case import Arguments, Case
from accel.bench.sizes import Draw, Size
from accel.contracts.checks import WIDE
from accel.contracts.quantized_linear import dequantize, quantize

LORA_RANK = 16
EXPERTS = 8
GROUPS = (32, 64)  # columns with one scale, of an int4 weight


def linear(s: Size) -> Iterator[Case]:
    shape = f"{s.rows}x{s.width} -> {s.inner}"

    def make(draw: Draw) -> Arguments:
        return draw.x(s.rows, s.width), draw.weight(s.inner, s.width), None, None, None

    yield Case("linear", s, shape, make, lambda x, w, *_: F.linear(x, w), "F.linear")

    def activated(draw: Draw) -> Arguments:
        x, w = draw.x(s.rows, s.width), draw.weight(s.inner, s.width)
        return x, w, draw.vector(s.inner), "gelu", None

    yield Case(
        "linear", s, shape, activated, lambda x, w, b, *_: F.gelu(F.linear(x, w, b)),
        "F.linear, F.gelu", "bias, gelu",
    )  # fmt: skip


def gated_linear(s: Size) -> Iterator[Case]:
    def make(draw: Draw) -> Arguments:
        gate, up = (draw.weight(s.inner, s.width) for _ in range(2))
        return draw.x(s.rows, s.width), gate, up, None, None, "silu", None

    yield Case(
        "gated_linear", s, f"{s.rows}x{s.width} -> {s.inner}", make,
        lambda x, gate, up, *_: F.silu(F.linear(x, gate)) * F.linear(x, up), "two F.linear, F.silu",
    )  # fmt: skip


def norm_linear(s: Size) -> Iterator[Case]:
    def make(draw: Draw) -> Arguments:
        x, w = draw.x(s.rows, s.width), draw.weight(s.inner, s.width)
        return x, w, draw.vector(s.width), None, None, "rms", 1e-6, None, None

    yield Case(
        "norm_linear", s, f"{s.rows}x{s.width} -> {s.inner}", make,
        lambda x, w, norm_w, *_: F.linear(F.rms_norm(x, norm_w.shape, norm_w, 1e-6), w),
        "F.rms_norm, F.linear", "rms",
    )  # fmt: skip


def lora_linear(s: Size) -> Iterator[Case]:
    def make(draw: Draw) -> Arguments:
        x, w = draw.x(s.rows, s.width), draw.weight(s.inner, s.width)
        down, up = draw.weight(LORA_RANK, s.width), draw.weight(s.inner, LORA_RANK)
        return x, w, down, up, None, 2.0, None

    def plain(x: Tensor, w: Tensor, down: Tensor, up: Tensor, *_: Any) -> Tensor:
        return F.linear(x, w) + F.linear(F.linear(x, down), up) * 2.0

    yield Case(
        "lora_linear", s, f"{s.rows}x{s.width} -> {s.inner}", make, plain, "three F.linear",
        f"rank {LORA_RANK}", frozen=("w",),
    )  # fmt: skip


def quantized_linear(s: Size) -> Iterator[Case]:
    for bits, group in ((8, None), *((4, group) for group in GROUPS)):

        def make(draw: Draw, bits: int = bits, group: int | None = group) -> Arguments:
            w, scales = quantize(draw.weight(s.inner, s.width).to(draw.wide), bits, group)
            return draw.x(s.rows, s.width), w, scales, None, bits, None, None

        def plain(x: Tensor, w: Tensor, scales: Tensor, b: Any, bits: int, *_: Any) -> Tensor:
            return F.linear(x, dequantize(w, scales, bits).to(x.dtype))

        yield Case(
            "quantized_linear", s, f"{s.rows}x{s.width} -> {s.inner}", make, plain,
            "dequantize, F.linear", f"int{bits}" + (f" in groups of {group}" if group else ""),
            frozen=("w", "scales"),
        )  # fmt: skip


def grouped_linear(s: Size) -> Iterator[Case]:
    """The rows of each expert in a row, as a router that is fair leaves them."""
    inner = s.inner // 4

    def make(draw: Draw) -> Arguments:
        ends = [(e + 1) * s.rows // EXPERTS for e in range(EXPERTS)]
        w = draw.weight(EXPERTS, inner, s.width)
        return draw.x(s.rows, s.width), w, draw.whole(ends), None, None, None

    def plain(x: Tensor, w: Tensor, ends: Tensor, *_: Any) -> Tensor:
        found, start = [], 0
        for e, end in enumerate(ends.tolist()):
            found.append(F.linear(x[start:end], w[e]))
            start = end
        return torch.cat(found)

    yield Case(
        "grouped_linear", s, f"{s.rows}x{s.width} -> {inner}", make, plain, "a loop of F.linear",
        f"{EXPERTS} experts",
    )  # fmt: skip


def tiled_linear(s: Size) -> Iterator[Case]:
    def make(draw: Draw) -> Arguments:
        x, w = draw.x(s.rows, s.width), draw.weight(s.inner, s.width)
        return x, w, None, draw.x(s.rows, s.inner), None

    yield Case(
        "tiled_linear", s, f"{s.rows}x{s.width} -> {s.inner}", make,
        lambda x, w, b, partial, *_: partial + F.linear(x, w), "F.linear, +", "a later tile",
    )  # fmt: skip


def tiled_mlp(s: Size) -> Iterator[Case]:
    if s.steps:
        return
    inner, tile_rows = s.inner // 2, s.rows // 2

    def make(draw: Draw) -> Arguments:
        up, gate = (draw.weight(inner, s.width) for _ in range(2))
        down = draw.weight(s.width, inner)
        return draw.x(s.rows, s.width), up, down, gate, None, None, None, "silu", tile_rows

    def mlp(x: Tensor, up: Tensor, down: Tensor, gate: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    def plain(x: Tensor, *args: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return torch.cat([mlp(rows, *args[:3]) for rows in x.split(tile_rows)])
        tiles = [
            checkpoint(mlp, rows, *args[:3], use_reentrant=False) for rows in x.split(tile_rows)
        ]
        return torch.cat(tiles)

    yield Case(
        "tiled_mlp", s, f"{s.rows}x{s.width} -> {inner}", make, plain,
        "F.linear and F.silu, checkpointed", "2 tiles",
    )  # fmt: skip


def logprob(s: Size) -> Iterator[Case]:
    """Of a head's hidden rows; without the head, of logits, it is in rowwise.py."""
    rows = min(s.rows, 256)

    def make(draw: Draw) -> Arguments:
        x, ids = draw.x(rows, s.width), draw.ids(s.vocabulary, rows)
        return x, ids, draw.weight(s.vocabulary, s.width), None, 1.0, None, 1.0

    yield Case(
        "logprob", s, f"{rows}x{s.width} -> {s.vocabulary}", make,
        lambda x, ids, w, *_: values(F.linear(x, w), ids), "F.linear, log_softmax, gather",
        "of a head",
    )  # fmt: skip


def values(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy, as one writes them."""
    logs = torch.log_softmax(logits.to(WIDE[logits.dtype]), -1)
    return logs.gather(-1, ids.unsqueeze(-1)).squeeze(-1), -(logs.exp() * logs).sum(-1)
