"""tiled_linear: ``partial + x @ w.T + b`` in fp32, rounded once: one tile of a product whose sum is
split.

The sum over K of ``linear`` in parts: each tile takes its columns of x and w and adds its share to
what the tiles before it found. Where it adds a bias to a partial sum of half precision, these two
may be rounded to it first: the partial sum has been.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs, linear
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance, rounded_once
from accel.errors import OpArgumentError

NAME = "tiled_linear"


def reference(
    x: Tensor,  # [..., K]
    w: Tensor,  # [N, K]
    b: Tensor | None = None,  # [N]
    partial: Tensor | None = None,  # [..., N], x's dtype or the one x is computed in
    out_dtype: torch.dtype | None = None,
) -> Tensor:  # [..., N]
    wide = checks.WIDE[x.dtype]
    z = linear.reference(x, w, b, None, wide)
    if partial is not None:
        z = partial.to(wide) + z
    return z.to(out_dtype or x.dtype)


def check(
    x: Tensor, w: Tensor, b: Tensor | None, partial: Tensor | None, out_dtype: torch.dtype | None
) -> None:
    given = {"x": x, "w": w, "b": b, "partial": partial}
    checks.refuse_nontensor(NAME, given, optional=("b", "partial"))
    checks.require_floats(NAME, x, {"w": w, "b": b})
    checks.require_weight(NAME, "w", w, x)
    checks.require_bias(NAME, "b", b, w.shape[0])
    if partial is not None:
        _check_partial(partial, (*x.shape[:-1], w.shape[0]), x)
    checks.require_out_dtype(NAME, out_dtype)


def _check_partial(partial: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if partial.dtype is not x.dtype:
        checks.require_wide(NAME, "partial", partial, x)
    else:
        checks.require_floats(NAME, x, {"partial": partial})
    if tuple(partial.shape) != shape:
        raise OpArgumentError(
            f"{NAME}: partial must be {list(shape)}, the result's shape; found "
            f"{checks.describe(partial)} beside {checks.describe(x)}"
        )


def check_out(x: Tensor, w: Tensor, out: Tensor, out_dtype: torch.dtype | None) -> None:
    """OpArgumentError unless the result of ``x`` and ``w`` can be written to ``out``."""
    checks.refuse_nontensor(NAME, {"x": x, "w": w, "out": out}, optional=())
    shape = (*x.shape[:-1], w.shape[0])
    if tuple(out.shape) != shape or out.device != x.device:
        raise OpArgumentError(
            f"{NAME}: out must be {list(shape)} on {x.device}, the result's; found "
            f"{checks.describe(out)}"
        )
    if out_dtype not in (None, out.dtype):
        raise OpArgumentError(f"{NAME}: out is {out.dtype} and out_dtype {out_dtype}; leave one")
    if any(size > 1 and stride == 0 for size, stride in zip(out.shape, out.stride())):
        raise OpArgumentError(
            f"{NAME}: out has one place for several elements; found {checks.describe(out)} with "
            f"strides {list(out.stride())}"
        )
    try:
        out.view(math.prod(shape[:-1]), shape[-1])
    except RuntimeError:
        raise OpArgumentError(
            f"{NAME}: the rows of out must lie at equal distances; found {checks.describe(out)} "
            f"with strides {list(out.stride())}"
        ) from None


def fits(x: Tensor, w: Tensor, b: Tensor | None, partial: Tensor | None) -> bool:
    if not linear.fits(x, w, b):
        return False
    if partial is None:
        return True
    kept = partial.dtype is x.dtype or partial.dtype is checks.WIDE.get(x.dtype)
    return kept and partial.shape == (*x.shape[:-1], w.shape[0])


def fake(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    partial: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    return linear.fake(x, w, b, None, out_dtype)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, b: Tensor | None,
    partial: Tensor | None, out_dtype: torch.dtype | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Those of linear; a partial sum's is what comes back. Its values are not read."""
    dx, dw, db, *_ = linear.backward(grad, needs, x, w, b, None, None)
    through = grad.to(partial.dtype) if partial is not None and needs[3] else None
    return dx, dw, db, through, None


def cost(x: Tensor, w: Tensor, b: Tensor | None, partial: Tensor | None, out_dtype: Any) -> Cost:
    product = linear.cost(x, w, b, None, out_dtype)
    if partial is None:
        return product
    read = partial.numel() * partial.element_size()
    return Cost(bytes=product.bytes + read, flops=product.flops + partial.numel())


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], n: int, *, bias: bool = True, partial: bool = True,
             wide: bool = False, out_dtype: Any = None, layout: str = "plain",
             ) -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            k = shape[-1]
            so_far = checks.WIDE[dtype] if wide else dtype
            out = (*shape[:-1], n)
            return (
                draw.rows(f"{name}.x", shape, dtype, device, layout),
                draw.weight(f"{name}.w", (n, k), dtype, device, layout),
                draw.plain(f"{name}.b", (n,), dtype, device) if bias else None,
                draw.rows(f"{name}.partial", out, so_far, device, layout) if partial else None,
                out_dtype,
            )

        return Sample(name, make)

    yield case("first", (6, 40), 24, partial=False)
    yield case("odd", (7, 50), 33)
    yield case("vector", (65,), 17, bias=False)
    yield case("batched", (2, 3, 31), 9, wide=True)
    yield case("no_rows", (0, 16), 8)
    yield case("no_sum", (4, 0), 8)
    yield case("long_sum", (3, 2051), 5)
    yield case("many_rows", (129, 16), 12, wide=True)
    yield case("out_fp32", (9, 50), 30, wide=True, out_dtype=torch.float32)
    yield case("out_bf16", (9, 50), 30, bias=False, out_dtype=torch.bfloat16)
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 40), 24, layout=layout)


def bad_inputs() -> Iterable[BadInput]:
    good = {
        "x": inputs.maker(NAME, "x", (3, 8)),
        "w": inputs.maker(NAME, "w", (5, 8)),
        "b": inputs.maker(NAME, "b", (5,)),
        "partial": inputs.maker(NAME, "partial", (3, 5)),
        "out_dtype": None,
    }
    yield inputs.spoil(good, "sum_differs", "last dimension", x=lambda x: x[:, :7])
    yield inputs.spoil(good, "bias_shape", "b must be", b=lambda b: b[:1])
    yield inputs.spoil(good, "partial_rows", "partial must be", partial=lambda p: p[:2])
    yield inputs.spoil(good, "partial_columns", "partial must be", partial=lambda p: p[:, :4])
    yield inputs.spoil(good, "partial_expands", "partial must be", partial=lambda p: p[0])
    yield inputs.spoil(good, "partial_dtype", "partial must have", partial=lambda p: p.int())
    yield inputs.spoil(good, "dtype_differs", "dtype", w=lambda w: w.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int())
    yield inputs.spoil(good, "integer_out", "out_dtype", out_dtype=torch.int32)
    yield inputs.spoil(good, "partial_elsewhere", "device", partial=lambda p: p.to("meta"))


TILED_LINEAR = Contract(
    name=NAME,
    family="TilingBuilder",
    schema="(Tensor x, Tensor w, Tensor? b=None, Tensor? partial=None, "
    "ScalarType? out_dtype=None) -> Tensor",
    options=("out_dtype",),
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
    rowwise=False,
    unread=("partial",),
)
