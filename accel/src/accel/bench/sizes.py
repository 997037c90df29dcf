"""The sizes ops are measured at, by names for people, and the tensors they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from accel.contracts.checks import WIDE

# What a call reads comes from memory if so many bytes are read before it is its turn again: more
# than the caches in front of it hold. That takes copies of the arguments, at most so many
# and of so many bytes.
COLD = 256 << 20
MOST_COPIES, MOST_COPIED = 1024, 8 * COLD


@dataclass(frozen=True)
class Size:
    """``rows`` tokens of a model that is ``width`` wide, of so many ``sequences``.

    ``inner``       columns of a product's result     ``heads``       of attention
    ``vocabulary``  columns of a head's logits        ``keys``        that a sequence has by now
    ``cold``        arguments come from memory, not from a cache, where a call reads enough
    ``backward``    with the gradients of everything that has one
    """

    name: str
    meaning: str
    rows: int
    sequences: int
    keys: int
    width: int = 1024
    inner: int = 4096
    heads: int = 16
    vocabulary: int = 32768
    cold: bool = False
    backward: bool = False

    @property
    def head(self) -> int:
        return self.width // self.heads

    @property
    def steps(self) -> bool:
        """One new token of each sequence."""
        return self.rows == self.sequences


SIZES = {
    size.name: size
    for size in (
        Size("decode", "one token, everything read from memory", 1, 1, keys=4096, cold=True),
        Size("batch", "a token of each of 16 sequences, weights in a cache", 16, 16, keys=1024),
        Size("prefill", "a prompt of 512 tokens", 512, 1, keys=512, cold=True),
        Size("long", "2048 tokens", 2048, 1, keys=2048, vocabulary=131072),
        Size("train", "1024 tokens, forward and backward", 1024, 1, keys=1024, backward=True),
        Size("tiny", "4 tokens of 64: what a call costs by itself", 4, 1, 4, 64, 64, 4, 64),
    )
}


@dataclass(frozen=True)
class Draw:
    """Tensors of a dtype on a device, normally distributed, the same in every run."""

    dtype: torch.dtype
    device: torch.device

    @property
    def wide(self) -> torch.dtype:
        """What is computed in: of arguments that stay in fp32 beside half precision."""
        return WIDE[self.dtype]

    @cached_property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def x(self, *shape: int) -> Tensor:
        return self._placed(self._normal(*shape))

    def weight(self, *shape: int) -> Tensor:
        """Its products with :meth:`x` are as large as x."""
        return self._placed(self._normal(*shape) * shape[-1] ** -0.5)

    def vector(self, width: int) -> Tensor:
        """Of a norm's weights or a bias."""
        return self._placed(self._normal(width) * 0.1 + 1)

    def ids(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=self.generator).to(self.device)

    def whole(self, numbers: object) -> Tensor:
        """Whole numbers as given."""
        return torch.tensor(numbers, dtype=torch.int64).to(self.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype).to(self.device)
