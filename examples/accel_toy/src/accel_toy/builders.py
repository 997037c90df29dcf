"""One op of its own. For all others accel serves the device with what it has for every device."""

from collections.abc import Callable

import torch
from torch import Tensor

import accel
from accel.contracts.activation import activate


def linear(
    x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out_dtype: torch.dtype | None
) -> Tensor:
    """Every output is a sum of its own over one row: its neighbours cannot change it."""
    z = (x.unsqueeze(-2) * w).sum(-1)
    if b is not None:
        z = z + b
    return activate(z, act).to(out_dtype or x.dtype)


class LinearBuilder(accel.OpBuilder):
    device_type = "toy"
    impls = (
        accel.Impl(
            "linear",
            "accel_toy.rowwise",
            dtypes=frozenset({torch.float32, torch.float64}),
            priority=50,
            shape_invariant=True,
        ),
    )

    def load(self, impl: accel.Impl) -> Callable[..., Tensor]:
        return linear
