"""Tuning: what a backend says about its device, as data. None of it changes a bit of a result."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Tile:
    """How the work of a product is cut into programs.

    ``blocks``   blocks of 16 rows that a program takes, which share what it reads of the weight
    ``columns``  columns of the result that a program makes; a power of two, 16 at least
    ``warps``    warps of a program
    ``stages``   chunks of the sum that are on their way from memory at once

    Every product of a tile is one of 16 rows by 8 or 16 columns, whatever these are, and every sum
    goes over its chunks in order.
    """

    blocks: int
    columns: int
    warps: int
    stages: int

    def halved(self) -> Tile:
        """With half the blocks, for a kernel that holds more of each at once."""
        return replace(self, blocks=max(self.blocks // 2, 1))


@dataclass(frozen=True)
class Tuning:
    """``few`` is for products of up to 16 rows, which wait for the weight; ``many`` for more; those
    in ``fp32`` have no matrix unit to go through."""

    few: Tile
    many: Tile
    few_fp32: Tile
    many_fp32: Tile

    def product(self, dtype: torch.dtype, rows: int) -> Tile:
        """The tile for a product of so many rows in ``dtype``."""
        if dtype is torch.float32:
            return self.few_fp32 if rows <= 16 else self.many_fp32
        return self.few if rows <= 16 else self.many
