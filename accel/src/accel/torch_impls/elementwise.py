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

# Where to read a value is to wait for nothing: the host's own memory.
from accel.host import in_host_memory, read

PART = 1 << 18  # elements


def gelu(z: Tensor) -> Tensor:
    """torch's own, and of an infinity itself, of which torch 2.13 makes NaN with AVX-512.

    Composed as in contracts/activation.py it would be right and take four times as long (65536
    elements, fp32, two Zen 5 cores)."""
    y = F.gelu(z)
    if in_host_memory(z) and float(z.sum()) < math.inf:
        return y
    return y.masked_fill_(z == math.inf, math.inf)


# Not of the same bits wherever an element lies: contracts/activation.py says why.
TORCH_S_OWN: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda z: z,
    "relu": torch.relu,
    "gelu": gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def require_one_device(x: Tensor, *others: Tensor | None) -> None:
    # torch 2.13 multiplies a real x by a meta weight, and adds a meta tensor in place, without a
    # word, into garbage.
    for other in others:
        if other is not None and other.device != x.device:
            raise RuntimeError(f"x is on {x.device}, another on {other.device}; move one of them")


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
    """``formula(x, *others)``, which has x's shape, rounded to x's dtype; a new tensor."""
    if x.numel() <= PART:
        return formula(x, *others).to(x.dtype)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for into, *part in parts(y, x, *others):
        into.copy_(formula(*part))
    return y


def bias_act(x: Tensor, b: Tensor | None, act: str | None) -> Tensor:
    function, wide = TORCH_S_OWN[act], WIDE[x.dtype]
    if b is None:  # torch's own computes half precisions in fp32 and rounds once
        return x.clone() if act is None else function(x)
    if act is None or x.dtype is wide:
        return function(x + b)
    wide_b = b.to(wide)
    return by_parts(lambda x: function(x + wide_b), x)


def bias_act_composed(x: Tensor, b: Tensor | None, act: str | None) -> Tensor:
    return by_parts(lambda x: biasing.reference(x, b, act), x)


def dropout_add(
    x: Tensor, residual: Tensor | None, b: Tensor | None, seed: Tensor | None,
    rows: Tensor | None, p: float,
) -> Tensor:  # fmt: skip
    if p == 0 and (b is None or residual is None):
        beside = b if residual is None else residual
        return x.clone() if beside is None else x + beside  # in fp32, rounded once
    require_one_device(x, residual)
    if p > 0 and rows is None:
        rows = dropping.numbered(x)
    wide = WIDE[x.dtype]
    wide_b = None if b is None else b.to(wide)

    def formula(x: Tensor, residual: Tensor | None, rows: Tensor | None) -> Tensor:
        z = dropping.dropped(x.to(wide) if wide_b is None else x + wide_b, seed, rows, p)
        return z if residual is None else z.add_(residual)

    if p == 0 and x.dtype is wide:  # two passes, for which parts would not pay
        return formula(x, residual, rows)
    return by_parts(formula, x, residual, rows)


def softmax(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    if not x.numel():
        return x.new_empty(x.shape)
    if mask is None and scale == 1.0:  # torch's own computes half precisions in fp32
        return _mended(x.softmax(-1), x)

    require_one_device(x, mask)
    wide = WIDE[x.dtype]

    def formula(x: Tensor, mask: Tensor | None) -> Tensor:
        z = x.to(wide)
        if scale != 1.0:
            z = z * scale if z is x else z.mul_(scale)
        if mask is not None:
            z = z + mask if z is x else z.add_(mask)
        return _mended(z.softmax(-1), z)

    if x.dtype is wide:  # passes that are few already
        return formula(x, mask)
    return by_parts(formula, x, None if mask is None else mask.expand(x.shape))


def _mended(y: Tensor, z: Tensor) -> Tensor:
    """``y``, torch's softmax of ``z``, with 0 where a row of z is nothing but -inf. Torch's is NaN
    there, as it is of NaN: in every element of the row, so that a column tells whether any is."""
    if in_host_memory(y) and not math.isnan(read(y.select(-1, 0).sum())):
        return y
    return y.masked_fill_(z.amax(-1, keepdim=True) == -math.inf, 0)
