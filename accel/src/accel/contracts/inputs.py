"""Inputs for samples: values that depend on their name alone, in the layouts tensors come in."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accel.contracts.contract import BadInput

Maker = Callable[[torch.dtype, torch.device], Tensor]

# plain: contiguous; transposed: last dimension strided; sliced: rows longer than used, with an
# offset; expanded: one row seen many times (stride 0).
LAYOUTS = ("transposed", "sliced", "expanded")


class Draw:
    """Standard normal tensors, each from a seed made of the op's and the tensor's name."""

    def __init__(self, op: str) -> None:
        self.op = op

    def plain(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        seed = zlib.crc32(f"{self.op}/{name}".encode())
        values = np.random.default_rng(seed).standard_normal(shape)
        return torch.from_numpy(np.asarray(values)).to(dtype).to(device)

    def integers(
        self, name: str, shape: tuple[int, ...], high: int, device: torch.device
    ) -> Tensor:
        """Whole numbers of [0, high) as int64, from a seed made like those of the others."""
        seed = zlib.crc32(f"{self.op}/{name}".encode())
        values = np.random.default_rng(seed).integers(high, size=shape)
        return torch.from_numpy(np.asarray(values)).to(device)

    def rows(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device,
        layout: str,
    ) -> Tensor:  # fmt: skip
        """Rows over the last dimension, in a layout out of :data:`LAYOUTS` or ``"plain"``."""
        if layout == "transposed":
            return self.plain(name, shape[::-1], dtype, device).permute(
                *range(len(shape) - 1, -1, -1)
            )
        if layout == "sliced":
            longer = (*shape[:-1], shape[-1] + 5)
            return self.plain(name, longer, dtype, device)[..., 3:-2]
        if layout == "expanded":
            return self.plain(name, (1,) * (len(shape) - 1) + shape[-1:], dtype, device).expand(
                shape
            )
        return self.plain(name, shape, dtype, device)

    def weight(
        self, name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device,
        layout: str,
    ) -> Tensor:  # fmt: skip
        """A weight scaled by 1/sqrt(in), so that results have an RMS near one."""
        drawn = self.rows(name, shape, dtype, device, "plain" if layout == "expanded" else layout)
        # In place, so that the strides under test survive.
        return drawn.mul_(max(shape[1], 1) ** -0.5)


def maker(op: str, name: str, shape: tuple[int, ...]) -> Maker:
    """A plain tensor made when dtype and device are known."""
    return lambda dtype, device: Draw(op).plain(name, shape, dtype, device)


def spoil(good: Mapping[str, Any], name: str, says: str, **changes: Any) -> BadInput:
    """Good arguments with one made bad: a new value, or a function of the good one."""

    def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
        made = {k: v(dtype, device) if callable(v) else v for k, v in good.items()}
        made |= {k: v(made[k]) if callable(v) else v for k, v in changes.items()}
        return tuple(made.values())

    return BadInput(name, make, says)
