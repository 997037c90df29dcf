"""add_norm: ``x + residual``, and its rms_norm or layer_norm.

The total is rounded to x's dtype, since it is what the next block's residual will be, and the norm
is that of the rounded total: the same bits as an addition and a norm, in one pass over memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs, layer_norm, rms_norm
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance
from accel.errors import OpArgumentError, close_matches

NAME = "add_norm"
KINDS = ("layer", "rms")


def require_kind(kind: str, b: Tensor | None) -> None:
    """``kind`` is one there is, and has a b where one is given."""
    if kind not in KINDS:
        raise OpArgumentError(f"{NAME}: unknown kind {kind!r}; {close_matches(str(kind), KINDS)}")
    if b is not None and kind == "rms":
        raise OpArgumentError(f"{NAME}: kind='rms' has no b; found {checks.describe(b)}")


def reference(
    x: Tensor,  # [..., H]
    residual: Tensor,  # [..., H]
    w: Tensor | None = None,  # [H]
    b: Tensor | None = None,  # [H], of kind "layer"
    kind: str = "rms",
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:  # [..., H], [..., H]
    require_kind(kind, b)
    total = x + residual  # torch adds half precisions in fp32 and rounds once
    if kind == "layer":
        return layer_norm.reference(total, w, b, eps), total
    return rms_norm.reference(total, w, eps), total


def check(
    x: Tensor, residual: Tensor, w: Tensor | None, b: Tensor | None, kind: str, eps: float
) -> None:
    given = {"x": x, "residual": residual, "w": w, "b": b}
    checks.refuse_nontensor(NAME, given, optional=("w", "b"))
    checks.require_floats(NAME, x, {"residual": residual, "w": w, "b": b})
    checks.require_rows(NAME, x)
    checks.require_same_shape(NAME, "residual", residual, "x", x)
    checks.require_bias(NAME, "w", w, x.shape[-1])
    checks.require_bias(NAME, "b", b, x.shape[-1])
    require_kind(kind, b)
    checks.require_eps(NAME, eps)


def fits(x: Tensor, residual: Tensor, w: Tensor | None, b: Tensor | None) -> bool:
    shape, dtype = x.shape, x.dtype
    if not shape or residual.shape != shape or residual.dtype is not dtype:
        return False
    return all(
        vector is None or (vector.shape == shape[-1:] and vector.dtype is dtype)
        for vector in (w, b)
    )


def fake(
    x: Tensor,
    residual: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    kind: str = "rms",
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


def backward(
    grads: tuple[Tensor | None, Tensor | None], needs: tuple[bool, ...], x: Tensor,
    residual: Tensor, w: Tensor | None, b: Tensor | None, kind: str, eps: float,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The norm's at the total, which is added again rather than kept."""
    of_normed, of_total = grads
    dw = db = None
    if of_normed is not None:
        total, through = x + residual, (needs[0] or needs[1], needs[2], needs[3])
        if kind == "layer":
            dx, dw, db, _ = layer_norm.backward(of_normed, through, total, w, b, eps)
        else:
            dx, dw, _ = rms_norm.backward(of_normed, through, total, w, eps)
        if dx is not None:
            of_total = dx if of_total is None else of_total + dx
    return of_total if needs[0] else None, of_total if needs[1] else None, dw, db, None, None


def cost(
    x: Tensor, residual: Tensor, w: Tensor | None, b: Tensor | None, kind: str, eps: float
) -> Cost:
    flops = 5 if kind == "rms" else 8
    return Cost(bytes=4 * x.numel() * x.element_size(), flops=flops * x.numel())


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], kind: str = "rms", *, weight: bool = True,
             bias: bool = True, eps: float = 1e-5, layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            return (
                draw.rows(f"{name}.x", shape, dtype, device, layout),
                draw.rows(f"{name}.residual", shape, dtype, device, layout),
                draw.plain(f"{name}.w", shape[-1:], dtype, device) if weight else None,
                draw.plain(f"{name}.b", shape[-1:], dtype, device)
                if bias and kind == "layer"
                else None,
                kind,
                eps,
            )

        return Sample(name, make)

    for kind in KINDS:
        yield case(f"even_{kind}", (16, 64), kind)
        yield case(f"odd_{kind}", (7, 33), kind)
        yield case(f"no_weight_{kind}", (5, 17), kind, weight=False)
    yield case("no_bias", (5, 17), "layer", bias=False)
    yield case("vector", (65,), "layer")
    yield case("batched", (2, 3, 5, 9))
    yield case("no_rows", (0, 16))
    yield case("long_sum", (3, 2051), "layer")
    yield case("many_rows", (257, 6), "layer")
    yield case("large_eps", (9, 20), eps=0.5)
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 24), "layer", layout=layout)


def bad_inputs() -> Iterable[BadInput]:
    good = {
        "x": inputs.maker(NAME, "x", (3, 8)),
        "residual": inputs.maker(NAME, "residual", (3, 8)),
        "w": inputs.maker(NAME, "w", (8,)),
        "b": inputs.maker(NAME, "b", (8,)),
        "kind": "layer",
        "eps": 1e-5,
    }
    yield inputs.spoil(good, "residual_shape", "residual must have", residual=lambda r: r[:2])
    yield inputs.spoil(good, "residual_row", "residual must have", residual=lambda r: r[0])
    yield inputs.spoil(good, "weight_shape", "w must be", w=lambda w: w[:7])
    yield inputs.spoil(good, "bias_shape", "b must be", b=lambda b: b[:7])
    yield inputs.spoil(good, "scalar_x", "at least one dimension", x=lambda x: x[0, 0])
    yield inputs.spoil(good, "dtype_differs", "dtype", residual=lambda r: r.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int())
    yield inputs.spoil(good, "unknown_kind", "unknown kind", kind="layr")
    yield inputs.spoil(good, "bias_of_rms", "has no b", kind="rms")
    yield inputs.spoil(good, "negative_eps", "eps", eps=-1.0)
    yield inputs.spoil(good, "other_device", "device", residual=lambda r: r.to("meta"))


ADD_NORM = Contract(
    name=NAME,
    family="TransformerBuilder",
    schema="(Tensor x, Tensor residual, Tensor? w=None, Tensor? b=None, str kind='rms',"
    " float eps=1e-05) -> (Tensor, Tensor)",
    options=("kind",),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="input",
    reference_invariant=True,
    # A norm's, of a total that has been rounded before: two errors of one size, whose squares add,
    # and whose peaks may.
    tolerance={
        dtype: Tolerance(rms=math.sqrt(2) * once.rms, peak=2 * once.peak)
        for dtype, once in layer_norm.LAYER_NORM.tolerance.items()
    },
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
    rowwise=False,
)
