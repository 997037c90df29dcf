"""rotary: pairs of a head's elements turned by an angle per row, given as its cos and sin.

Su et al. 2021. Two products and one sum, each rounded to fp32 and never fused, then one rounding
to x's dtype: eager torch and a native kernel agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance, rounded_once
from accel.errors import OpArgumentError

NAME = "rotary"


def split(x: Tensor, r: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Views [..., r] of the first and of the second elements of the ``r`` pairs."""
    if interleaved:
        return x[..., 0 : 2 * r : 2], x[..., 1 : 2 * r : 2]
    return x[..., :r], x[..., r : 2 * r]


def join(first: Tensor, second: Tensor, rest: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        pairs = torch.stack((first, second), -1).flatten(-2)
        return torch.cat((pairs, rest), -1)
    return torch.cat((first, second, rest), -1)


def reference(
    x: Tensor,  # [..., H, D]
    cos: Tensor,  # [..., R/2], wide
    sin: Tensor,  # [..., R/2], wide
    interleaved: bool = False,
) -> Tensor:  # [..., H, D]
    r = cos.shape[-1]
    a, b = (half.to(cos.dtype) for half in split(x, r, interleaved))
    c, s = cos.unsqueeze(-2), sin.unsqueeze(-2)
    first, second = a * c - b * s, b * c + a * s
    return join(first.to(x.dtype), second.to(x.dtype), x[..., 2 * r :], interleaved)


def check(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    checks.refuse_nontensor(NAME, {"x": x, "cos": cos, "sin": sin}, optional=())
    checks.require_floats(NAME, x, {})
    for name, table in (("cos", cos), ("sin", sin)):
        checks.require_wide(NAME, name, table, x)
    if x.dim() < 2:
        raise OpArgumentError(f"{NAME}: x must be [..., H, D]; found {checks.describe(x)}")
    if cos.dim() < 1 or cos.shape[:-1] != x.shape[:-2]:
        raise OpArgumentError(
            f"{NAME}: cos must be [..., R/2] with x's leading dimensions {list(x.shape[:-2])}; "
            f"found {checks.describe(cos)} beside {checks.describe(x)}"
        )
    checks.require_same_shape(NAME, "sin", sin, "cos", cos)
    if 2 * cos.shape[-1] > x.shape[-1]:
        raise OpArgumentError(
            f"{NAME}: cos may have at most D/2 = {x.shape[-1] // 2} columns, half of x's last "
            f"dimension; found {checks.describe(cos)} beside {checks.describe(x)}"
        )
    checks.require_flag(NAME, "interleaved", interleaved)


def fits(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    rows, table, wide = x.shape, cos.shape, checks.WIDE.get(x.dtype)
    return (
        cos.dtype is wide
        and sin.dtype is wide
        and sin.shape == table
        and len(rows) == len(table) + 1 > 1
        and rows[:-2] == table[:-1]
        and 2 * table[-1] <= rows[-1]
    )


def fake(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    return x.new_empty(x.shape)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor | None, ...]:
    """The gradient of x is turned back by the same angles."""
    dx = reference(grad, cos, -sin, interleaved) if needs[0] else None
    dcos = dsin = None
    if needs[1] or needs[2]:
        a, b = (half.to(cos.dtype) for half in split(x, cos.shape[-1], interleaved))
        da, db = (half.to(cos.dtype) for half in split(grad, cos.shape[-1], interleaved))
        dcos = (da * a + db * b).sum(-2) if needs[1] else None
        dsin = (db * a - da * b).sum(-2) if needs[2] else None
    return dx, dcos, dsin, None


def cost(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Cost:
    turned = 2 * cos.numel() * x.shape[-2]
    tables = (cos.numel() + sin.numel()) * cos.element_size()
    return Cost(bytes=2 * x.numel() * x.element_size() + tables, flops=3 * turned)


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], r: int, *, interleaved: bool = False,
             layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            table, wide = (*shape[:-2], r), checks.WIDE[dtype]
            return (
                draw.rows(f"{name}.x", shape, dtype, device, layout),
                draw.rows(f"{name}.cos", table, wide, device, layout),
                draw.rows(f"{name}.sin", table, wide, device, layout),
                interleaved,
            )

        return Sample(name, make)

    yield case("even", (16, 4, 64), 32)
    yield case("odd", (7, 3, 37), 17)
    yield case("partial", (5, 2, 80), 20)
    yield case("no_rows", (0, 2, 16), 8)
    yield case("no_heads", (3, 0, 16), 8)
    yield case("no_pairs", (3, 2, 5), 0)
    yield case("one", (1, 1, 2), 1)
    yield case("one_position", (4, 32), 16)
    yield case("batched", (2, 3, 5, 2, 26), 13)
    yield case("many_rows", (257, 2, 24), 12)
    yield case("interleaved", (16, 4, 64), 32, interleaved=True)
    yield case("interleaved_odd", (7, 3, 37), 17, interleaved=True)
    yield case("interleaved_partial", (5, 2, 80), 20, interleaved=True)
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 3, 40), 18, layout=layout)
        yield case(f"layout_{layout}_interleaved", (6, 3, 40), 18, interleaved=True, layout=layout)


def bad_inputs() -> Iterable[BadInput]:
    def table(name: str) -> inputs.Maker:
        def make(dtype: torch.dtype, device: torch.device) -> Tensor:
            return inputs.Draw(NAME).plain(name, (3, 4), checks.WIDE[dtype], device)

        return make

    good = {
        "x": inputs.maker(NAME, "x", (3, 2, 8)),
        "cos": table("cos"),
        "sin": table("sin"),
        "interleaved": False,
    }
    yield inputs.spoil(good, "vector_x", "x must be", x=lambda x: x[0, 0])
    yield inputs.spoil(good, "rows_differ", "leading dimensions", cos=lambda cos: cos[:2])
    yield inputs.spoil(good, "rank_differs", "leading dimensions", cos=lambda cos: cos[0])
    yield inputs.spoil(good, "scalar_cos", "leading dimensions", cos=lambda cos: cos[0, 0])
    yield inputs.spoil(good, "tables_differ", "sin must have", sin=lambda sin: sin[:, :3])
    yield inputs.spoil(good, "too_wide", "at most", x=lambda x: x[..., :7])
    yield inputs.spoil(good, "narrow_cos", "dtype", cos=lambda cos: cos.bfloat16())
    yield inputs.spoil(good, "narrow_sin", "dtype", sin=lambda sin: sin.bfloat16())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int())
    yield inputs.spoil(good, "other_device", "device", cos=lambda cos: cos.to("meta"))


ROTARY = Contract(
    name=NAME,
    family="TransformerBuilder",
    schema="(Tensor x, Tensor cos, Tensor sin, bool interleaved=False) -> Tensor",
    options=(),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="keep",
    reference_invariant=True,
    tolerance=rounded_once(Tolerance(rms=1e-7, peak=1.5e-6)),
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
    rowwise=False,
)
