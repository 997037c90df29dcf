"""bias_act: ``act(x + b)`` in fp32, rounded once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs
from accel.contracts.activation import ACTIVATIONS, activate, slope_times
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance, rounded_once

NAME = "bias_act"


def biased(x: Tensor, b: Tensor | None) -> Tensor:
    """``x + b``, wide."""
    z = x.to(checks.WIDE[x.dtype])
    return z if b is None else z + b.to(z.dtype)


def rounded(z: Tensor, x: Tensor) -> Tensor:
    """``z`` in x's dtype, in memory of its own where it is x itself."""
    return z.clone() if z is x else z.to(x.dtype)


def reference(
    x: Tensor,  # [..., H]
    b: Tensor | None = None,  # [H]
    act: str | None = None,
) -> Tensor:  # [..., H]
    return rounded(activate(biased(x, b), act), x)


def check(x: Tensor, b: Tensor | None, act: str | None) -> None:
    checks.refuse_nontensor(NAME, {"x": x, "b": b}, optional=("b",))
    checks.require_floats(NAME, x, {"b": b})
    checks.require_rows(NAME, x)
    checks.require_bias(NAME, "b", b, x.shape[-1])
    checks.require_act(NAME, act)


def fits(x: Tensor, b: Tensor | None) -> bool:
    shape = x.shape
    if b is None or not shape:
        return bool(shape)
    return b.shape == shape[-1:] and b.dtype is x.dtype


def fake(x: Tensor, b: Tensor | None = None, act: str | None = None) -> Tensor:
    return x.new_empty(x.shape)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, b: Tensor | None, act: str | None
) -> tuple[Tensor | None, ...]:
    z = biased(x, b)
    dz = grad.to(z.dtype)
    if act is not None:
        dz = slope_times(dz, z, act)
    dx = dz.to(x.dtype) if needs[0] else None
    db = dz.sum_to_size(x.shape[-1:]).to(x.dtype) if needs[1] else None
    return dx, db, None


def cost(x: Tensor, b: Tensor | None, act: str | None) -> Cost:
    return Cost(bytes=2 * x.numel() * x.element_size(), flops=(1 if act is None else 8) * x.numel())


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], act: str | None = None, *, bias: bool = True,
             size: float = 1.0, layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            x = draw.rows(f"{name}.x", shape, dtype, device, layout)
            b = draw.plain(f"{name}.b", shape[-1:], dtype, device) if bias else None
            return (x if size == 1.0 else x * size, b, act)

        return Sample(name, make)

    yield case("even", (16, 64))
    yield case("vector", (65,), "gelu")
    yield case("batched", (2, 3, 5, 9), "gelu_tanh")
    yield case("no_bias", (5, 17), "silu", bias=False)
    yield case("x_alone", (5, 17), bias=False)
    yield case("no_rows", (0, 16), "gelu")
    yield case("no_columns", (4, 0), "silu")
    yield case("many_rows", (257, 6), "gelu")
    yield case("far_ends", (9, 20), "silu", size=40.0)
    for act in ACTIVATIONS:
        yield case(f"act_{act}", (9, 33), act)
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 24), "gelu", layout=layout)


def bad_inputs() -> Iterable[BadInput]:
    good = {
        "x": inputs.maker(NAME, "x", (3, 8)),
        "b": inputs.maker(NAME, "b", (8,)),
        "act": None,
    }
    yield inputs.spoil(good, "bias_shape", "b must be", b=lambda b: b[:1])
    yield inputs.spoil(good, "bias_rank", "b must be", b=lambda b: b.expand(3, 8))
    yield inputs.spoil(good, "scalar_x", "at least one dimension", x=lambda x: x[0, 0], b=None)
    yield inputs.spoil(good, "dtype_differs", "dtype", b=lambda b: b.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int(), b=None)
    yield inputs.spoil(good, "unknown_act", "unknown act", act="gelo")
    yield inputs.spoil(good, "other_device", "device", b=lambda b: b.to("meta"))


BIAS_ACT = Contract(
    name=NAME,
    family="TransformerBuilder",
    schema="(Tensor x, Tensor? b=None, str? act=None) -> Tensor",
    options=("act",),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="input",
    reference_invariant=True,
    tolerance=rounded_once(Tolerance(rms=2e-7, peak=2e-6)),
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
)
