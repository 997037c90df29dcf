"""Rows as the kernels read them: one after another, from an aligned address.

The compiler chooses how a row's elements lie in registers, and with that the order of their sum, by
what it knows of addresses. So every call that has rows of one length must tell it the same: rows
that lie otherwise are copied first. Nothing else about a call chooses what is compiled, neither
the number of rows nor where they lie, and a row is one program's: its bits are its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel.triton_kernels import launching
from accel.triton_kernels.tuning import Tile

# One or None for each argument; or NotImplemented, and the contract's serves.
Gradients = Any

ALIGNED = 16  # bytes

PARTS = 128  # in how many parts at most a sum over rows is made
LARGEST_BLOCK = 4096  # elements of a row that a program holds at once


def rows_of(x: Tensor) -> Tensor:
    """``x`` [..., H] as [M, H], copied unless its rows lie as kernels want them."""
    return aligned(launching.as_rows(x))


def aligned(t: Tensor) -> Tensor:
    """``t``, contiguous from an aligned address."""
    if t.is_contiguous() and t.data_ptr() % ALIGNED == 0:
        return t
    return t.clone(memory_format=torch.contiguous_format)


def optional(t: Tensor | None) -> Tensor | None:
    return None if t is None else aligned(t)


def block_of(columns: int, largest: int = LARGEST_BLOCK) -> int:
    """The power of two that holds ``columns``, or ``largest``."""
    return min(power_of_two(columns), largest)


def power_of_two(n: int) -> int:
    """The smallest that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def warps_of(block: int) -> int:
    """Warps for a block of one row: a function of its length alone, as the order of sums is."""
    return min(max(block // 256, 1), 8)


def parts_of(rows: int) -> tuple[int, int]:
    """In how many parts a sum over rows is made, and how many rows each has: a function of their
    number alone."""
    each = max(-(-rows // PARTS), 1)
    return max(-(-rows // each), 1), each


def launch(
    kernel: Any, grid: tuple[int, ...], warps: int, *args: Any, stages: int = 2, **constants: Any
) -> None:
    """Run ``kernel`` with so many warps, which an order of sums may depend on."""
    launching.launch(kernel, grid, Tile(1, 16, warps, stages), *args, **constants)
