"""lora_linear: ``x @ w.T + b + scale * (x @ lora_a.T) @ lora_b.T`` in fp32, rounded once.

Hu et al. 2021. Where a layer with an adapter beside it rounds the product, the inner product and
the adapter's share before it adds them, nothing is rounded here before the sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs, linear
from accel.contracts.contract import BadInput, Contract, Cost, Sample
from accel.errors import OpArgumentError

NAME = "lora_linear"


def reference(
    x: Tensor,  # [..., K]
    w: Tensor,  # [N, K]
    lora_a: Tensor,  # [R, K]
    lora_b: Tensor,  # [N, R]
    b: Tensor | None = None,  # [N]
    scale: float = 1.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:  # [..., N]
    wide = checks.WIDE[x.dtype]
    inner = linear.reference(x, lora_a, None, None, wide)
    z = linear.reference(x, w, b, None, wide) + scale * (inner @ lora_b.to(wide).t())
    return z.to(out_dtype or x.dtype)


def check(
    x: Tensor, w: Tensor, lora_a: Tensor, lora_b: Tensor, b: Tensor | None, scale: float,
    out_dtype: torch.dtype | None,
) -> None:  # fmt: skip
    given = {"x": x, "w": w, "lora_a": lora_a, "lora_b": lora_b, "b": b}
    checks.refuse_nontensor(NAME, given, optional=("b",))
    checks.require_floats(NAME, x, {k: v for k, v in given.items() if k != "x"})
    checks.require_weight(NAME, "w", w, x)
    checks.require_weight(NAME, "lora_a", lora_a, x)
    if lora_b.shape != (w.shape[0], lora_a.shape[0]):
        raise OpArgumentError(
            f"{NAME}: lora_b must be [out, rank] = [{w.shape[0]}, {lora_a.shape[0]}]; found "
            f"{checks.describe(lora_b)} with w {checks.describe(w)} and lora_a "
            f"{checks.describe(lora_a)}"
        )
    checks.require_bias(NAME, "b", b, w.shape[0])
    checks.require_number(NAME, "scale", scale)
    checks.require_out_dtype(NAME, out_dtype)


def fits(x: Tensor, w: Tensor, lora_a: Tensor, lora_b: Tensor, b: Tensor | None) -> bool:
    if not linear.fits(x, w, b) or not linear.fits(x, lora_a, None):
        return False
    up = lora_b.shape
    return (
        len(up) == 2
        and up[0] == w.shape[0]
        and up[1] == lora_a.shape[0]
        and lora_b.dtype is x.dtype
    )


def fake(
    x: Tensor, w: Tensor, lora_a: Tensor, lora_b: Tensor, b: Tensor | None = None,
    scale: float = 1.0, out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=out_dtype or x.dtype)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, lora_a: Tensor, lora_b: Tensor,
    b: Tensor | None, scale: float, out_dtype: torch.dtype | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The inner product, [rows, R], is computed again, in fp32, rather than kept."""
    dx, dw, db, _, _ = linear.backward(grad, (needs[0], needs[1], needs[4]), x, w, b, None, None)
    da = d_up = None
    # Counted, since -1 cannot be inferred beside a dimension of 0.
    m = math.prod(x.shape[:-1])
    rows = grad.to(x.dtype).reshape(m, w.shape[0])
    flat = x.reshape(m, x.shape[-1])
    if needs[0] or needs[2]:
        d_inner = rows @ lora_b * scale
        da = d_inner.t() @ flat if needs[2] else None
        if dx is not None:
            dx = dx + (d_inner @ lora_a).reshape(x.shape)
    if needs[3]:
        wide = checks.WIDE[x.dtype]
        inner = linear.reference(flat, lora_a, None, None, wide) * scale
        d_up = rows.t() @ inner.to(x.dtype)
    return dx, dw, da, d_up, db, None, None


def cost(x: Tensor, w: Tensor, lora_a: Tensor, *rest: Any) -> Cost:
    (n, k), r = w.shape, lora_a.shape[0]
    m = x.numel() // max(k, 1)
    return Cost(
        bytes=(m * k + n * k + r * k + n * r + m * n) * x.element_size(),
        flops=2 * m * (n * k + r * k + n * r),
    )


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(
        name: str, shape: tuple[int, ...], n: int, r: int, *, bias: bool = False,
        scale: float = 1.0, out_dtype: Any = None, layout: str = "plain",
    ) -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            k = shape[-1]
            return (
                draw.rows(f"{name}.x", shape, dtype, device, layout),
                draw.weight(f"{name}.w", (n, k), dtype, device, layout),
                draw.weight(f"{name}.a", (r, k), dtype, device, layout),
                draw.weight(f"{name}.up", (n, r), dtype, device, layout),
                draw.plain(f"{name}.b", (n,), dtype, device) if bias else None,
                scale,
                out_dtype,
            )

        return Sample(name, make)

    yield case("even", (16, 64), 32, 8, bias=True, scale=2.0)
    yield case("odd", (7, 100), 33, 5, bias=True, scale=0.3)
    yield case("vector", (65,), 17, 3, bias=True)
    yield case("batched", (2, 3, 5, 31), 9, 4)
    yield case("one", (1, 1), 1, 1, bias=True)
    yield case("no_rows", (0, 16), 8, 4, bias=True)
    yield case("no_columns", (4, 16), 0, 4)
    yield case("no_sum", (4, 0), 8, 4, bias=True)
    yield case("no_rank", (4, 16), 8, 0, bias=True)
    yield case("long_sum", (5, 2051), 13, 16)
    yield case("wide_rank", (5, 48), 21, 67, scale=0.5)
    yield case("many_rows", (257, 48), 20, 8, bias=True)
    yield case("against", (9, 50), 30, 8, scale=-1.5)
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 40), 24, 8, bias=True, scale=2.0, layout=layout)
    yield case("out_fp32", (9, 50), 30, 8, bias=True, out_dtype=torch.float32)
    yield case("out_bf16", (9, 50), 30, 8, scale=2.0, out_dtype=torch.bfloat16)


def bad_inputs() -> Iterable[BadInput]:
    shapes = {"x": (3, 8), "w": (5, 8), "lora_a": (2, 8), "lora_b": (5, 2), "b": (5,)}
    good: dict[str, Any] = {k: inputs.maker(NAME, k, shape) for k, shape in shapes.items()}
    good |= {"scale": 1.0, "out_dtype": None}
    yield inputs.spoil(good, "sum_differs", "last dimension", x=lambda x: x[:, :7])
    yield inputs.spoil(good, "weight_rank", "w must be", w=lambda w: w[0])
    yield inputs.spoil(good, "a_sum_differs", "lora_a's in", lora_a=lambda a: a[:, :7])
    yield inputs.spoil(good, "a_rank", "lora_a must be", lora_a=lambda a: a[0])
    yield inputs.spoil(good, "ranks_differ", "lora_b must be", lora_b=lambda b: b[:, :1])
    yield inputs.spoil(good, "outs_differ", "lora_b must be", lora_b=lambda b: b[:4])
    yield inputs.spoil(good, "b_transposed", "lora_b must be", lora_b=lambda b: b.t())
    yield inputs.spoil(good, "scalar_x", "at least one dimension", x=lambda x: x[0, 0])
    yield inputs.spoil(good, "bias_shape", "b must be", b=lambda b: b[:1])
    yield inputs.spoil(good, "dtype_differs", "dtype", lora_a=lambda a: a.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int())
    yield inputs.spoil(good, "integer_out", "out_dtype", out_dtype=torch.int32)
    yield inputs.spoil(good, "other_device", "device", lora_b=lambda b: b.to("meta"))


LORA_LINEAR = Contract(
    name=NAME,
    family="LinearBuilder",
    schema="(Tensor x, Tensor w, Tensor lora_a, Tensor lora_b, Tensor? b=None, float scale=1.0, "
    "ScalarType? out_dtype=None) -> Tensor",
    options=("out_dtype",),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="lower",
    reference_invariant=False,
    tolerance=linear.LINEAR.tolerance,
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
)
