"""layer_norm: ``(x - mean) / sqrt(variance + eps) * w + b`` over the last dimension, in fp32,
rounded once.

Ba, Kiros and Hinton 2016. The variance is the mean of the squared deviations, taken after the mean:
a mean of squares less a squared mean loses all digits where the mean is large.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance, rounded_once

NAME = "layer_norm"


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x without its mean over the root, one over the root) of an x that is wide already."""
    deviation = x - x.mean(-1, keepdim=True)
    # 1/sqrt rather than rsqrt: torch's half-precision rsqrt differs between vector and scalar.
    scale = 1 / torch.sqrt((deviation * deviation).mean(-1, keepdim=True) + eps)
    return deviation * scale, scale


def reference(
    x: Tensor,  # [..., H]
    w: Tensor | None = None,  # [H]
    b: Tensor | None = None,  # [H]
    eps: float = 1e-5,
) -> Tensor:  # [..., H]
    wide = x.to(checks.WIDE[x.dtype])
    y, _ = _normalised(wide, eps)
    if w is not None:
        y = y * w.to(wide.dtype)
    if b is not None:
        y = y + b.to(wide.dtype)
    return y.to(x.dtype)


def check(x: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> None:
    checks.refuse_nontensor(NAME, {"x": x, "w": w, "b": b}, optional=("w", "b"))
    checks.require_floats(NAME, x, {"w": w, "b": b})
    checks.require_rows(NAME, x)
    checks.require_bias(NAME, "w", w, x.shape[-1])
    checks.require_bias(NAME, "b", b, x.shape[-1])
    checks.require_eps(NAME, eps)


def fits(x: Tensor, w: Tensor | None, b: Tensor | None) -> bool:
    rows, dtype = x.shape, x.dtype
    if not rows:
        return False
    for vector in (w, b):
        if vector is not None:
            shape = vector.shape
            if len(shape) != 1 or shape[0] != rows[-1] or vector.dtype is not dtype:
                return False
    return True


def fake(x: Tensor, w: Tensor | None = None, b: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    return x.new_empty(x.shape)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor | None, b: Tensor | None, eps: float
) -> tuple[Tensor | None, ...]:
    wide = x.to(checks.WIDE[x.dtype])
    grad = grad.to(wide.dtype)
    if not torch.is_grad_enabled():
        found = _in_one_pass(grad, needs, wide, w, b, eps)
        return *(None if t is None else t.to(x.dtype) for t in found), None
    y, scale = _normalised(wide, eps)
    dx = dw = db = None
    if needs[0]:
        g = grad if w is None else grad * w.to(wide.dtype)
        along_y = y * (g * y).mean(-1, keepdim=True)
        dx = (scale * (g - g.mean(-1, keepdim=True) - along_y)).to(x.dtype)
    if w is not None and needs[1]:
        dw = (grad * y).sum_to_size(w.shape).to(x.dtype)
    if b is not None and needs[2]:
        db = grad.sum_to_size(b.shape).to(x.dtype)
    return dx, dw, db, None


def _in_one_pass(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor | None, b: Tensor | None, eps: float
) -> tuple[Tensor | None, ...]:
    """The gradients of a wide x by torch's own, which may depend on where they lie. Of deviations
    from the mean: those that torch forms by itself are rounded where they should be 0."""
    shape, (w, b) = x.shape[-1:], (None if t is None else t.to(x.dtype) for t in (w, b))
    asked = [needs[0], w is not None and needs[1], b is not None and needs[2]]
    _, mean, scale = torch.native_layer_norm(x, shape, None, None, eps)
    deviation, none = x - mean, torch.zeros_like(mean)
    return torch.ops.aten.native_layer_norm_backward(  # type: ignore[no-any-return]
        grad, deviation, shape, none, scale, w, b, asked
    )


def cost(x: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Cost:
    return Cost(bytes=2 * x.numel() * x.element_size(), flops=7 * x.numel())


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], *, weight: bool = True, bias: bool = True,
             eps: float = 1e-5, size: float = 1.0, mean: float = 0.0,
             layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            x = draw.rows(f"{name}.x", shape, dtype, device, layout)
            w = draw.plain(f"{name}.w", shape[-1:], dtype, device) if weight else None
            b = draw.plain(f"{name}.b", shape[-1:], dtype, device) if bias else None
            return (x if (size, mean) == (1.0, 0.0) else x * size + mean, w, b, eps)

        return Sample(name, make)

    yield case("even", (16, 64))
    yield case("odd", (7, 101))
    yield case("vector", (65,))
    yield case("batched", (2, 3, 5, 31))
    yield case("no_bias", (5, 77), bias=False)
    yield case("no_weight", (5, 77), weight=False)
    yield case("neither", (5, 77), weight=False, bias=False)
    yield case("one", (1, 1))
    yield case("no_rows", (0, 16))
    yield case("no_columns", (4, 0))
    yield case("long", (3, 4099))
    yield case("many_rows", (257, 48))
    yield case("large_eps", (9, 50), eps=0.5)
    yield case("tiny", (9, 50), size=1e-3, eps=1e-6)
    yield case("large", (9, 50), size=300.0)
    yield case("off_centre", (9, 50), mean=8.0)
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 40), layout=layout)


def bad_inputs() -> Iterable[BadInput]:
    good = {
        "x": inputs.maker(NAME, "x", (3, 8)),
        "w": inputs.maker(NAME, "w", (8,)),
        "b": inputs.maker(NAME, "b", (8,)),
        "eps": 1e-5,
    }
    yield inputs.spoil(good, "weight_shape", "w must be", w=lambda w: w[:7])
    yield inputs.spoil(good, "weight_rank", "w must be", w=lambda w: w[None])
    yield inputs.spoil(good, "bias_shape", "b must be", b=lambda b: b[:1])
    yield inputs.spoil(good, "bias_rank", "b must be", b=lambda b: b.expand(3, 8))
    yield inputs.spoil(
        good, "scalar_x", "at least one dimension", x=lambda x: x[0, 0], w=None, b=None
    )
    yield inputs.spoil(good, "dtype_differs", "dtype", w=lambda w: w.double())
    yield inputs.spoil(good, "bias_dtype_differs", "dtype", b=lambda b: b.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int(), w=None, b=None)
    yield inputs.spoil(good, "negative_eps", "eps", eps=-1.0)
    yield inputs.spoil(good, "other_device", "device", w=lambda w: w.to("meta"))


LAYER_NORM = Contract(
    name=NAME,
    family="TransformerBuilder",
    schema="(Tensor x, Tensor? w=None, Tensor? b=None, float eps=1e-05) -> Tensor",
    options=(),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="input",
    reference_invariant=True,
    # A mean of eight deviations costs three bits of each.
    tolerance=rounded_once(Tolerance(rms=1e-6, peak=6e-6)),
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
)
