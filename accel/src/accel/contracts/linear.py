"""linear: ``act(x @ w.T + b)``, accumulated, biased and activated in fp32, rounded once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs
from accel.contracts.activation import activate, slope_times
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance, rounded_once

NAME = "linear"


def reference(
    x: Tensor,  # [..., K]
    w: Tensor,  # [N, K]
    b: Tensor | None = None,  # [N]
    act: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:  # [..., N]
    wide = checks.WIDE[x.dtype]
    z = x.to(wide) @ w.to(wide).t()
    if b is not None:
        z = z + b.to(wide)
    return activate(z, act).to(out_dtype or x.dtype)


def check(
    x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out_dtype: torch.dtype | None
) -> None:
    checks.refuse_nontensor(NAME, {"x": x, "w": w, "b": b}, optional=("b",))
    checks.require_floats(NAME, x, {"w": w, "b": b})
    checks.require_weight(NAME, "w", w, x)
    checks.require_bias(NAME, "b", b, w.shape[0])
    checks.require_act(NAME, act)
    checks.require_out_dtype(NAME, out_dtype)


def fits(x: Tensor, w: Tensor, b: Tensor | None) -> bool:
    rows, weight = x.shape, w.shape
    if len(weight) != 2 or not rows or rows[-1] != weight[1]:
        return False
    dtype = x.dtype
    if w.dtype is not dtype:
        return False
    if b is None:
        return True
    bias = b.shape
    return len(bias) == 1 and bias[0] == weight[0] and b.dtype is dtype


def fake(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    act: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=out_dtype or x.dtype)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, b: Tensor | None,
    act: str | None, out_dtype: torch.dtype | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """With an activation the product is computed again, in fp32, rather than kept."""
    if act is not None:
        wide = checks.WIDE[x.dtype]
        grad = slope_times(grad.to(wide), reference(x, w, b, None, wide), act)
    grad = grad.to(x.dtype)
    # Counted, since -1 cannot be inferred beside a dimension of 0.
    m = math.prod(x.shape[:-1])
    rows = grad.reshape(m, grad.shape[-1])
    dx = grad @ w if needs[0] else None
    dw = rows.t() @ x.reshape(m, x.shape[-1]) if needs[1] else None
    db = rows.sum(0) if needs[2] else None
    return dx, dw, db, None, None


def cost(x: Tensor, w: Tensor, b: Tensor | None, act: Any, out_dtype: Any) -> Cost:
    n, k = w.shape
    m = x.numel() // max(k, 1)
    size = x.element_size()
    return Cost(bytes=(m * k + n * k + m * n) * size, flops=2 * m * n * k)


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], n: int, *, bias: bool = False, act: Any = None,
             out_dtype: Any = None, layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            k = shape[-1]
            return (
                draw.rows(f"{name}.x", shape, dtype, device, layout),
                draw.weight(f"{name}.w", (n, k), dtype, device, layout),
                draw.plain(f"{name}.b", (n,), dtype, device) if bias else None,
                act,
                out_dtype,
            )

        return Sample(name, make)

    yield case("even", (16, 64), 32, bias=True)
    yield case("odd", (7, 100), 33, bias=True)
    yield case("vector", (65,), 17, bias=True)
    yield case("batched", (2, 3, 5, 31), 9)
    yield case("one", (1, 1), 1, bias=True)
    yield case("no_rows", (0, 16), 8, bias=True)
    yield case("no_columns", (4, 16), 0)
    yield case("no_sum", (4, 0), 8, bias=True)
    yield case("long_sum", (5, 2051), 13)
    yield case("many_rows", (257, 48), 20, bias=True)
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 40), 24, bias=True, layout=layout)
    for act in ("relu", "gelu", "gelu_tanh", "silu"):
        yield case(f"act_{act}", (9, 50), 30, bias=True, act=act)
    yield case("out_fp32", (9, 50), 30, bias=True, out_dtype=torch.float32)
    yield case("out_bf16", (9, 50), 30, act="silu", out_dtype=torch.bfloat16)


def bad_inputs() -> Iterable[BadInput]:
    good = {
        "x": inputs.maker(NAME, "x", (3, 8)),
        "w": inputs.maker(NAME, "w", (5, 8)),
        "b": inputs.maker(NAME, "b", (5,)),
        "act": None,
        "out_dtype": None,
    }
    yield inputs.spoil(good, "sum_differs", "last dimension", x=lambda x: x[:, :7])
    yield inputs.spoil(good, "weight_rank", "w must be", w=lambda w: w[0])
    yield inputs.spoil(good, "scalar_x", "at least one dimension", x=lambda x: x[0, 0])
    yield inputs.spoil(good, "bias_shape", "b must be", b=lambda b: b[:1])
    yield inputs.spoil(good, "bias_rank", "b must be", b=lambda b: b.expand(3, 5))
    yield inputs.spoil(good, "dtype_differs", "dtype", w=lambda w: w.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int())
    yield inputs.spoil(good, "unknown_act", "unknown act", act="relo")
    yield inputs.spoil(good, "integer_out", "out_dtype", out_dtype=torch.int32)
    yield inputs.spoil(good, "other_device", "device", w=lambda w: w.to("meta"))


LINEAR = Contract(
    name=NAME,
    family="LinearBuilder",
    schema="(Tensor x, Tensor w, Tensor? b=None, str? act=None, ScalarType? out_dtype=None)"
    " -> Tensor",
    options=("act", "out_dtype"),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="lower",
    reference_invariant=False,
    tolerance=rounded_once(Tolerance(rms=1e-6, peak=1e-5)),
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
)
