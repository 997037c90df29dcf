"""What the cases of eager_cases.py are made of: two sizes, and tensors of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """``ours`` and ``plain`` are functions of ``tensors`` alone; of floating point ones gradients
    are asked but for those at ``frozen``."""

    op: str
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    tensors: Sequence[Tensor]
    what: str = ""
    note: str = ""
    frozen: tuple[int, ...] = ()

    def recorded(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors as autograd's leaves, and those of them whose gradients are asked."""
        tensors = [t.detach() for t in self.tensors]
        asked = (i for i, t in enumerate(tensors) if t.is_floating_point() and i not in self.frozen)
        return tensors, [tensors[i].requires_grad_() for i in asked]


@dataclass(frozen=True)
class Size:
    """rows of activations and their width; rows and columns of a product's result; heads"""

    name: str
    rows: int
    width: int
    product_rows: int
    out: int
    heads: int
    vocabulary: int

    @property
    def head(self) -> int:
        return self.width // self.heads


USUAL = Size("usual", 512, 1024, product_rows=64, out=512, heads=16, vocabulary=4096)
TINY = Size("tiny", 4, 64, product_rows=4, out=64, heads=2, vocabulary=64)


@dataclass(frozen=True)
class Draw:
    size: Size
    dtype: torch.dtype

    def x(self, *shape: int) -> Tensor:
        return torch.randn(shape or (self.size.rows, self.size.width)).to(self.dtype)

    def few(self, width: int | None = None) -> Tensor:
        """Rows for a product."""
        return self.x(self.size.product_rows, width or self.size.width)

    def weight(self, out: int, width: int) -> Tensor:
        return (torch.randn(out, width) * width**-0.5).to(self.dtype)

    def vector(self, width: int | None = None) -> Tensor:
        return (torch.randn(width or self.size.width) * 0.1 + 1).to(self.dtype)
