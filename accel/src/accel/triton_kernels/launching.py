"""From tensors to a launch: what the launch functions of all kernels share."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from accel.triton_kernels.tuning import Tile


def launch(kernel: Any, grid: tuple[int, ...], tile: Tile, *args: Any, **constants: Any) -> None:
    """Run ``kernel`` over ``grid`` with ``args``; ``constants`` are its compile-time ones.

    The one place where kernels are started, on the device of the first argument. Fusing a product
    with a sum would let the same line of code round differently in two kernels, so it is off.
    """
    with on(args[0].device):
        kernel[grid](
            *args,
            **constants,
            num_warps=tile.warps,
            num_stages=tile.stages,
            enable_fp_fusion=False,
        )


def on(device: torch.device) -> AbstractContextManager[Any]:
    """The body's work is for this device, which is made the current one if it has a number."""
    if device.index is None:
        return nullcontext()
    guard: AbstractContextManager[Any] = torch.get_device_module(device).device(device.index)
    return guard


def require_one_device(x: Tensor, *others: Tensor | None) -> None:
    """RuntimeError unless the others lie where ``x`` does: a kernel would read a wrong address."""
    for other in others:
        if other is not None and other.device != x.device:
            raise RuntimeError(f"x is on {x.device}, another on {other.device}; move one of them")


def as_rows(x: Tensor) -> Tensor:
    """``x`` as ``[M, K]``; a view where its rows lie at equal distances."""
    # Counted, since -1 cannot be inferred beside a dimension of 0.
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def step_of(vector: Tensor | None) -> int:
    """The stride of a vector that may be left out."""
    return 0 if vector is None else vector.stride(0)


def grid(tile: Tile, m: int, n: int) -> tuple[int, int]:
    """The programs of a product ``[m, n]``: rows vary fastest, as they share the weight's tile."""
    return -(-m // (16 * tile.blocks)), -(-n // tile.columns)
