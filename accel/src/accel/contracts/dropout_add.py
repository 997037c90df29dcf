"""dropout_add: ``residual + dropout(x + b)`` in fp32, rounded once.

Srivastava et al. 2014, survivors times 1/(1-p). What is dropped is a function of the seed, the
row's number and the column (:mod:`accel.contracts.random`), so nothing need be kept for the
gradient, and a row that keeps its number loses the same elements beside whichever others. What is
dropped is 0, NaN or infinite as it may have been.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs
from accel.contracts.bias_act import biased, rounded
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance, rounded_once
from accel.contracts.random import kept
from accel.errors import OpArgumentError

NAME = "dropout_add"


def numbered(x: Tensor) -> Tensor:
    """The default numbers of the rows of ``x`` [..., H]: their places, counted through."""
    leading = x.shape[:-1]
    return torch.arange(math.prod(leading), device=x.device).reshape(leading)


def dropped(z: Tensor, seed: Tensor | None, rows: Tensor | None, p: float) -> Tensor:
    """``z`` [..., H] with its survivors scaled; its own gradient's formula too."""
    if p == 0:
        return z
    assert seed is not None, "p > 0 needs a seed"
    kept_here = kept(seed, numbered(z) if rows is None else rows, z.shape[-1], p)
    return torch.where(kept_here, z * (1 / (1 - p) if p < 1 else 0.0), 0.0)


def reference(
    x: Tensor,  # [..., H]
    residual: Tensor | None = None,  # [..., H]
    b: Tensor | None = None,  # [H]
    seed: Tensor | None = None,  # [], int64
    rows: Tensor | None = None,  # [...], int64
    p: float = 0.0,
) -> Tensor:  # [..., H]
    z = dropped(biased(x, b), seed, rows, p)
    if residual is not None:
        z = residual.to(z.dtype) + z
    return rounded(z, x)


def check(
    x: Tensor, residual: Tensor | None, b: Tensor | None, seed: Tensor | None,
    rows: Tensor | None, p: float,
) -> None:  # fmt: skip
    given = {"x": x, "residual": residual, "b": b, "seed": seed, "rows": rows}
    checks.refuse_nontensor(NAME, given, optional=("residual", "b", "seed", "rows"))
    checks.require_floats(NAME, x, {"residual": residual, "b": b})
    checks.require_rows(NAME, x)
    if residual is not None:
        checks.require_same_shape(NAME, "residual", residual, "x", x)
    checks.require_bias(NAME, "b", b, x.shape[-1])
    checks.require_dropout(NAME, "p", p, seed, like="x", other=x)
    if rows is not None:
        checks.require_integers(NAME, "rows", rows, like="x", other=x)
        if rows.shape != x.shape[:-1]:
            raise OpArgumentError(
                f"{NAME}: rows must be {list(x.shape[:-1])}, a number for each row of x; found "
                f"{checks.describe(rows)} beside {checks.describe(x)}"
            )


def fits(
    x: Tensor, residual: Tensor | None, b: Tensor | None, seed: Tensor | None, rows: Tensor | None
) -> bool:
    shape, dtype = x.shape, x.dtype
    if not shape:
        return False
    if residual is not None and (residual.shape != shape or residual.dtype is not dtype):
        return False
    if b is not None and (b.shape != shape[-1:] or b.dtype is not dtype):
        return False
    if seed is not None and (seed.shape or seed.dtype is not torch.int64):
        return False
    return rows is None or (rows.shape == shape[:-1] and rows.dtype is torch.int64)


def fake(
    x: Tensor,
    residual: Tensor | None = None,
    b: Tensor | None = None,
    seed: Tensor | None = None,
    rows: Tensor | None = None,
    p: float = 0.0,
) -> Tensor:
    return x.new_empty(x.shape)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, residual: Tensor | None, b: Tensor | None,
    seed: Tensor | None, rows: Tensor | None, p: float,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """What was dropped is worked out again from the seed."""
    dx = db = None
    if needs[0] or needs[2]:
        wide = checks.WIDE[x.dtype]
        dz = dropped(grad.to(wide), seed, rows, p)
        dx = dz.to(x.dtype) if needs[0] else None
        db = dz.sum_to_size(x.shape[-1:]).to(x.dtype) if needs[2] else None
    return dx, grad if needs[1] else None, db, None, None, None


def cost(
    x: Tensor, residual: Tensor | None, b: Any, seed: Any, rows: Tensor | None, p: float
) -> Cost:
    moved = (2 if residual is None else 3) * x.numel() * x.element_size()
    numbers = 0 if rows is None else rows.numel() * rows.element_size()
    return Cost(bytes=moved + numbers, flops=3 * x.numel())


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], p: float, *, residual: bool = True,
             bias: bool = True, numbers: bool = False,
             layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            rows = draw.integers(f"{name}.rows", shape[:-1], 2**48, device) if numbers else None
            return (
                draw.rows(f"{name}.x", shape, dtype, device, layout),
                draw.rows(f"{name}.residual", shape, dtype, device, layout) if residual else None,
                draw.plain(f"{name}.b", shape[-1:], dtype, device) if bias else None,
                draw.integers(f"{name}.seed", (), 2**62, device) if p else None,
                rows,
                p,
            )

        return Sample(name, make)

    yield case("even", (16, 64), 0.1)
    yield case("odd", (7, 33), 0.5, numbers=True)
    yield case("vector", (65,), 0.3)
    yield case("batched", (2, 3, 5, 9), 0.25, numbers=True)
    yield case("no_dropout", (5, 17), 0.0)
    yield case("x_itself", (5, 17), 0.0, residual=False, bias=False)
    yield case("no_survivor", (5, 17), 1.0)
    yield case("no_residual", (5, 17), 0.3, residual=False)
    yield case("x_alone", (5, 17), 0.3, residual=False, bias=False)
    yield case("no_rows", (0, 16), 0.3, numbers=True)
    yield case("no_columns", (4, 0), 0.3)
    yield case("many_rows", (257, 20), 0.1)
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 24), 0.3, layout=layout)


def bad_inputs() -> Iterable[BadInput]:
    def whole(*shape: int) -> inputs.Maker:
        return lambda dtype, device: inputs.Draw(NAME).integers("whole", shape, 2**48, device)

    good = {
        "x": inputs.maker(NAME, "x", (3, 8)),
        "residual": inputs.maker(NAME, "residual", (3, 8)),
        "b": inputs.maker(NAME, "b", (8,)),
        "seed": whole(),
        "rows": whole(3),
        "p": 0.25,
    }
    yield inputs.spoil(good, "residual_shape", "residual must have x's", residual=lambda r: r[0])
    yield inputs.spoil(good, "bias_shape", "b must be", b=lambda b: b[:7])
    yield inputs.spoil(good, "scalar_x", "at least one dimension", x=lambda x: x[0, 0])
    yield inputs.spoil(good, "dtype_differs", "dtype", residual=lambda r: r.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int())
    yield inputs.spoil(good, "no_seed", "needs a seed", seed=None)
    yield inputs.spoil(good, "seed_shape", "seed must be", seed=lambda seed: seed[None])
    yield inputs.spoil(good, "short_seed", "seed must be", seed=lambda seed: seed.int())
    yield inputs.spoil(good, "rows_shape", "rows must be", rows=lambda rows: rows[:2])
    yield inputs.spoil(good, "short_rows", "rows must be", rows=lambda rows: rows.int())
    yield inputs.spoil(good, "negative_p", "p must be between", p=-0.1)
    yield inputs.spoil(good, "p_over_one", "p must be between", p=1.5)
    yield inputs.spoil(good, "other_device", "device", residual=lambda r: r.to("meta"))


DROPOUT_ADD = Contract(
    name=NAME,
    family="TransformerBuilder",
    schema="(Tensor x, Tensor? residual=None, Tensor? b=None, Tensor? seed=None,"
    " Tensor? rows=None, float p=0.0) -> Tensor",
    options=(),
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
    rowwise=False,  # a row's default number is its place
    unread=("x", "residual", "b"),
)
