"""Logits a tile at a time: rows by columns of the vocabulary, and what flows back through one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_BYTES = 1 << 24  # of fp32 logits held at once
BLOCK_ROWS = 2048  # rows of a tile at most: each block of rows passes over the weight once


def blocks(rows: int) -> Iterator[slice]:
    """Slices of :data:`BLOCK_ROWS` rows at most; one for no rows."""
    for start in range(0, max(rows, 1), BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, rows))


def tiles(rows: int, width: int) -> Iterator[slice]:
    """Slices of ``width`` columns whose fp32 logits of ``rows`` fill :data:`TILE_BYTES` at most."""
    step = max(TILE_BYTES // (4 * max(rows, 1)), 1)
    for start in range(0, width, step):
        yield slice(start, min(start + step, width))


def one_tile(rows: int, width: int) -> bool:
    """Whether all logits fit one tile."""
    return rows <= BLOCK_ROWS and 4 * rows * width <= TILE_BYTES


@dataclass(frozen=True)
class Adjustment:
    """``softcap·tanh(z·scale / softcap) / temperature``; a step that is the identity changes no
    bit."""

    scale: float
    softcap: float | None
    temperature: float

    def __call__(self, z: Tensor) -> Tensor:
        if self.scale != 1.0:
            z = z * self.scale
        if self.softcap is not None:
            z = self.softcap * torch.tanh(z / self.softcap)
        return z if self.temperature == 1.0 else z / self.temperature

    def backward(self, grad: Tensor, adjusted: Tensor) -> Tensor:
        """Gradient of z from that of the ``adjusted`` z."""
        if self.temperature != 1.0:
            grad = grad / self.temperature
        if self.softcap is not None:
            grad = grad * (1 - (adjusted * (self.temperature / self.softcap)) ** 2)
        return grad if self.scale == 1.0 else grad * self.scale


def placed(ids: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Of ids ``[M]``: the place of each in a tile of ``columns``, [M, 1], and whether it is there.
    A place outside is 0."""
    at = (ids - columns.start).unsqueeze(-1)
    inside = (at >= 0) & (at < columns.stop - columns.start)
    return at.where(inside, 0), inside


def through_softmax(
    logs: Tensor, ids: Tensor, columns: slice, entropy: Tensor, grads: Sequence[Tensor | None]
) -> Tensor:
    """Gradient of a tile of adjusted logits from those of logprob and entropy, [M, 1] each.

    ``logs`` [M, columns] are log-probabilities l and p = exp(l): g (δ - p) and -g p (l + H). Where
    l is -inf, p is 0 and nothing flows but to the id itself.
    """
    of_logprob, of_entropy = grads
    share = of_logprob  # of each -p
    if of_entropy is not None:
        share = (finite(logs) + entropy) * of_entropy
        share = share if of_logprob is None else share + of_logprob
    assert share is not None, "one of the two has a gradient"
    dz = logs.exp() * -share
    if of_logprob is None:
        return dz
    at, inside = placed(ids, columns)
    return dz.scatter_add(-1, at, of_logprob * inside)


def finite(logs: Tensor) -> Tensor:
    """``logs`` with -1e4 in place of what is less: its probability is 0 in every dtype, and times
    that it is 0, where -inf is NaN."""
    return logs.clamp_min(-1e4)
