"""softmax: ``softmax(x * scale + mask)`` over the last dimension, in fp32, rounded once.

A row of nothing but -inf sees nothing: it is 0, as are its gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance, rounded_once
from accel.errors import OpArgumentError

NAME = "softmax"


def scores(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """``x * scale + mask``, wide."""
    z = x.to(checks.WIDE[x.dtype])
    if scale != 1.0:
        z = z * scale
    return z if mask is None else z + mask.to(z.dtype)


def _probabilities(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    z = scores(x, mask, scale)
    if not z.shape[-1]:
        return z.clone()
    # Softmax of nothing but -inf is NaN, in its gradient too: such a row gets one element to see,
    # and loses it again.
    blind = z.amax(-1, keepdim=True) == -math.inf
    return _first_where(blind, _first_where(blind, z).softmax(-1))


def _first_where(rows: Tensor, z: Tensor) -> Tensor:
    """``z`` with 0 as the first element of ``rows``. To join a column to the others takes a fifth
    of the time of filling whole rows (512 x 1024 fp32, 2-core EPYC)."""
    return torch.cat((z[..., :1].masked_fill(rows, 0), z[..., 1:]), -1)


def reference(
    x: Tensor,  # [..., S]
    mask: Tensor | None = None,  # of x's shape, or one that broadcasts to it
    scale: float = 1.0,
) -> Tensor:  # [..., S]
    return _probabilities(x, mask, scale).to(x.dtype)


def _broadcasts(mask: torch.Size, shape: torch.Size) -> bool:
    return len(mask) <= len(shape) and all(
        size in (1, whole) for size, whole in zip(reversed(mask), reversed(shape))
    )


def check(x: Tensor, mask: Tensor | None, scale: float) -> None:
    checks.refuse_nontensor(NAME, {"x": x, "mask": mask}, optional=("mask",))
    checks.require_floats(NAME, x, {"mask": mask})
    checks.require_rows(NAME, x)
    if mask is not None and not _broadcasts(mask.shape, x.shape):
        raise OpArgumentError(
            f"{NAME}: mask must have x's shape or broadcast to it; found {checks.describe(mask)} "
            f"beside {checks.describe(x)}"
        )
    checks.require_number(NAME, "scale", scale)


def fits(x: Tensor, mask: Tensor | None) -> bool:
    shape = x.shape
    if mask is None or not shape:
        return bool(shape)
    return mask.dtype is x.dtype and _broadcasts(mask.shape, shape)


def fake(x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
    return x.new_empty(x.shape)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, mask: Tensor | None, scale: float, *,
    results: tuple[Tensor],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """With p = softmax(z), the result: dz = p (dp - sum(p dp))."""
    p = results[0].to(checks.WIDE[x.dtype])
    dp = grad.to(p.dtype)
    dz = torch._softmax_backward_data(dp, p, -1, p.dtype)
    dx = (dz * scale).to(x.dtype) if needs[0] else None
    dmask = None
    if mask is not None and needs[1]:
        dmask = dz.sum_to_size(mask.shape).to(mask.dtype)
    return dx, dmask, None


def cost(x: Tensor, mask: Tensor | None, scale: float) -> Cost:
    read = x.numel() + (0 if mask is None else mask.numel())
    return Cost(bytes=(read + x.numel()) * x.element_size(), flops=5 * x.numel())


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], mask: tuple[int, ...] | None = None, *,
             scale: float = 1.0, hidden: bool = False, mean: float = 0.0,
             layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            x = draw.rows(f"{name}.x", shape, dtype, device, layout)
            if mean:
                x = x + mean
            if mask is None:
                return x, None, scale
            added = draw.plain(f"{name}.mask", mask, dtype, device)
            if hidden:  # the first row sees everything, the second nothing, others their start
                seen = torch.arange(mask[-2], device=device)[:, None] * 3 - 3
                columns = torch.arange(mask[-1], device=device)
                seen[0] = mask[-1]
                added = added.masked_fill(columns >= seen, -math.inf)
            return x, added, scale

        return Sample(name, make)

    yield case("even", (16, 64), (16, 64))
    yield case("odd", (7, 33), (33,))
    yield case("vector", (65,))
    yield case("batched", (2, 3, 5, 9), (2, 1, 1, 9), scale=0.5)
    yield case("per_row", (2, 5, 9), (5, 1), scale=2.0)
    yield case("hidden", (3, 6, 15), (6, 15), hidden=True)
    yield case("scaled", (5, 17), scale=0.125)
    yield case("steep", (5, 17), scale=128.0)  # over what the exponential of fp32 can hold
    yield case("far_below", (5, 17), mean=-200.0)  # where each exponential of fp32 is 0
    yield case("one", (1, 1), (1, 1))
    yield case("no_rows", (0, 16), (16,))
    yield case("no_columns", (4, 0))
    yield case("long_sum", (3, 2051))
    yield case("many_rows", (257, 6))
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 24), (6, 24), layout=layout)


def bad_inputs() -> Iterable[BadInput]:
    good = {
        "x": inputs.maker(NAME, "x", (3, 8)),
        "mask": inputs.maker(NAME, "mask", (3, 8)),
        "scale": 1.0,
    }
    yield inputs.spoil(good, "mask_columns", "mask must have x's", mask=lambda mask: mask[:, :7])
    yield inputs.spoil(good, "mask_rows", "mask must have x's", mask=lambda mask: mask[:2])
    yield inputs.spoil(good, "mask_rank", "mask must have x's", mask=lambda mask: mask[None])
    yield inputs.spoil(good, "bool_mask", "dtype", mask=lambda mask: mask > 0)
    yield inputs.spoil(good, "scalar_x", "at least one", x=lambda x: x[0, 0], mask=None)
    yield inputs.spoil(good, "dtype_differs", "dtype", mask=lambda mask: mask.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int(), mask=None)
    yield inputs.spoil(good, "other_device", "device", mask=lambda mask: mask.to("meta"))


SOFTMAX = Contract(
    name=NAME,
    family="TransformerBuilder",
    schema="(Tensor x, Tensor? mask=None, float scale=1.0) -> Tensor",
    options=(),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="input",
    reference_invariant=True,
    # The error of a score, of its size's last place, is a share of its probability.
    tolerance=rounded_once(Tolerance(rms=5e-7, peak=6e-6)),
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
    keeps_results=True,
    unread=("x", "mask"),
)
