"""rms_norm: ``x / sqrt(mean(x²) + eps) * w`` over the last dimension, in fp32, rounded once.

Zhang and Sennrich 2019. Where transformers' Llama rounds the normalised value to x's dtype before
the weight, this rounds once, after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance, rounded_once
from accel.errors import OpArgumentError

NAME = "rms_norm"


def _scale(x: Tensor, eps: float) -> Tensor:
    # 1/sqrt rather than rsqrt: torch's half-precision rsqrt differs between vector and scalar.
    return 1 / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def reference(x: Tensor, w: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    wide = x.to(checks.WIDE[x.dtype])
    y = wide * _scale(wide, eps)
    return (y if w is None else y * w.to(wide.dtype)).to(x.dtype)


def check(x: Tensor, w: Tensor | None, eps: float) -> None:
    checks.refuse_nontensor(NAME, {"x": x, "w": w}, optional=("w",))
    checks.require_floats(NAME, x, {"w": w})
    checks.require_rows(NAME, x)
    if w is not None and (w.dim() != 1 or w.shape[0] != x.shape[-1]):
        raise OpArgumentError(
            f"{NAME}: w must be [{x.shape[-1]}], x's last dimension; found {checks.describe(w)}"
        )
    checks.require_eps(NAME, eps)


def fits(x: Tensor, w: Tensor | None) -> bool:
    rows = x.shape
    if w is None or not rows:
        return bool(rows)
    weight = w.shape
    return len(weight) == 1 and weight[0] == rows[-1] and w.dtype is x.dtype


def fake(x: Tensor, w: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    return x.new_empty(x.shape)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor | None, eps: float
) -> tuple[Tensor | None, ...]:
    wide = x.to(checks.WIDE[x.dtype])
    scale = _scale(wide, eps)
    y = wide * scale
    grad = grad.to(wide.dtype)
    g = grad if w is None else grad * w.to(wide.dtype)
    dx = (scale * (g - y * (g * y).mean(-1, keepdim=True))).to(x.dtype) if needs[0] else None
    dw = None
    if w is not None and needs[1]:
        dw = (grad * y).sum_to_size(w.shape).to(x.dtype)
    return dx, dw, None


def cost(x: Tensor, w: Tensor | None, eps: float) -> Cost:
    return Cost(bytes=2 * x.numel() * x.element_size(), flops=4 * x.numel())


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], *, weight: bool = True, eps: float = 1e-6,
             size: float = 1.0, layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            x = draw.rows(f"{name}.x", shape, dtype, device, layout)
            w = draw.plain(f"{name}.w", shape[-1:], dtype, device) if weight else None
            return (x if size == 1.0 else x * size, w, eps)

        return Sample(name, make)

    yield case("even", (16, 64))
    yield case("odd", (7, 101))
    yield case("vector", (65,))
    yield case("batched", (2, 3, 5, 31))
    yield case("no_weight", (5, 77), weight=False)
    yield case("one", (1, 1))
    yield case("no_rows", (0, 16))
    yield case("long", (3, 4099))
    yield case("many_rows", (257, 48))
    yield case("large_eps", (9, 50), eps=0.5)
    yield case("tiny", (9, 50), size=1e-3, eps=1e-6)
    yield case("large", (9, 50), size=300.0)
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 40), layout=layout)


def bad_inputs() -> Iterable[BadInput]:
    good = {
        "x": inputs.maker(NAME, "x", (3, 8)),
        "w": inputs.maker(NAME, "w", (8,)),
        "eps": 1e-6,
    }
    yield inputs.spoil(good, "weight_shape", "w must be", w=lambda w: w[:7])
    yield inputs.spoil(good, "weight_rank", "w must be", w=lambda w: w[None])
    yield inputs.spoil(good, "scalar_x", "at least one dimension", x=lambda x: x[0, 0], w=None)
    yield inputs.spoil(good, "dtype_differs", "dtype", w=lambda w: w.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int(), w=None)
    yield inputs.spoil(good, "negative_eps", "eps", eps=-1.0)
    yield inputs.spoil(good, "other_device", "device", w=lambda w: w.to("meta"))


RMS_NORM = Contract(
    name=NAME,
    family="TransformerBuilder",
    schema="(Tensor x, Tensor? w=None, float eps=1e-06) -> Tensor",
    options=(),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="input",
    reference_invariant=True,
    tolerance=rounded_once(Tolerance(rms=3e-7, peak=4e-6)),
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
)
