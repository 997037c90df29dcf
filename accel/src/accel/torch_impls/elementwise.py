"""bias_act, dropout_add and softmax: torch operations over parts that fit the cache.

A whole tensor goes through memory once for every operation, a part once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.contracts import bias_act as biasing
from accel.contracts import dropout_add as dropping
from accel.contracts.checks import WIDE
from accel.contracts.softmax import scores

PART = 1 << 18  # elements

# Not of the same bits wherever an element lies: contracts/activation.py says why.
_TORCH_S_OWN: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda z: z,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def parts(first: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Tensors with equal leading dimensions, cut alike, so that a part of the first has
    :data:`PART` elements at most, or is a row."""
    if first.numel() <= max(PART, first.shape[-1]):
        yield (first, *others)
        return
    step = PART // first[0].numel()
    where: Iterator[Any] = iter(range(len(first)))
    if step or first.dim() == 2:
        step = max(step, 1)
        where = (slice(start, start + step) for start in range(0, len(first), step))
    for at in where:
        yield from parts(first[at], *(None if t is None else t[at] for t in others))


def by_parts(formula: Callable[..., Tensor], x: Tensor, *others: Tensor | None) -> Tensor:
    """``formula(x, *others)``, which has x's shape and dtype; a new tensor."""
    if x.numel() <= PART:
        return formula(x, *others)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for into, *part in parts(y, x, *others):
        into.copy_(formula(*part))
    return y


def bias_act(x: Tensor, b: Tensor | None, act: str | None) -> Tensor:
    def formula(x: Tensor) -> Tensor:
        return biasing.rounded(_TORCH_S_OWN[act](biasing.biased(x, b)), x)

    # One pass or two over what need not be converted: parts would not pay.
    return formula(x) if x.dtype is WIDE[x.dtype] else by_parts(formula, x)


def bias_act_composed(x: Tensor, b: Tensor | None, act: str | None) -> Tensor:
    return by_parts(lambda x: biasing.reference(x, b, act), x)


def dropout_add(
    x: Tensor, residual: Tensor | None, b: Tensor | None, seed: Tensor | None,
    rows: Tensor | None, p: float,
) -> Tensor:  # fmt: skip
    beside = b if residual is None else residual
    if p == 0 and beside is not None and (b is None or residual is None):
        return x + beside  # torch adds two in fp32 and rounds once
    if p > 0 and rows is None:
        rows = dropping.numbered(x)
    return by_parts(
        lambda x, residual, rows: dropping.reference(x, residual, b, seed, rows, p),
        x, residual, rows,
    )  # fmt: skip


def softmax(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    def formula(x: Tensor, mask: Tensor | None) -> Tensor:
        z = scores(x, mask, scale)
        z = z.clone() if z is x else z
        # torch's of nothing but -inf is NaN. Such a row gets one element to see, and loses it
        # again: to fill whole rows takes over half as long as the softmax (torch 2.13, x86).
        blind = z.amax(-1, keepdim=True) == -math.inf
        z[..., :1].masked_fill_(blind, 0)
        y = z.softmax(-1)
        y[..., :1].masked_fill_(blind, 0)
        return y.to(x.dtype)

    if not x.numel():
        return x.new_empty(x.shape)
    return by_parts(formula, x, None if mask is None else mask.expand(x.shape))
