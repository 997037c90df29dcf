"""Quantised copies of weights, which a rollout reads in the place of the parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from accel import ops
from accel.contracts.quantized_linear import quantize
from accel.engine.modules.projection import Linear, Stacked
from accel.host import read
from accel.refusal import Refusal

# What there may be a copy of.
Copied = Linear | Stacked
# Columns that share a scale of 4 bits, at most and at least: fewer, and scales outweigh numbers.
_MOST, _LEAST = 64, 16
# Elements that are quantised at once, so that what is computed between lies in a cache.
_AT_ONCE = 1 << 20


class QuantizedWeights:
    """Copies of projections' weights, of ``bits`` bits (or those a projection at least wants).

    Each is made when its layer first runs, so that whoever gathers parameters for their layer has
    done it, and is not remade when a parameter changes: who keeps them says how long. Parameters
    are only read.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.state = object()
        self._made: dict[Copied, tuple[Tensor, Tensor, int]] = {}

    def __deepcopy__(self, memo: object) -> QuantizedWeights:
        return QuantizedWeights(self.bits)

    def __reduce__(self) -> tuple[type[QuantizedWeights], tuple[int]]:
        return QuantizedWeights, (self.bits,)

    @property
    def bytes(self) -> int:
        """What they take."""
        made = [tensor for *copy, _ in self._made.values() for tensor in copy]
        return sum(tensor.numel() * tensor.element_size() for tensor in made)

    def clear(self) -> None:
        """Drop them; the next rollout makes others."""
        self._made.clear()
        self.state = object()  # others than before

    def product(
        self, linear: Linear, x: Tensor, act: str | None, out_dtype: torch.dtype | None
    ) -> Tensor:
        """``act(x @ copy.T + bias)``, rounded once."""
        w, scales, bits = self._copy(linear)
        return ops.quantized_linear(
            x, w, scales, linear.bias, bits=bits, act=act, out_dtype=out_dtype
        )

    def products(self, stacked: Stacked, x: Tensor, ends: Tensor, out_dtype: torch.dtype) -> Tensor:
        """Of each expert's rows, which end where ``ends`` says, ``x @ copy.T`` by its own."""
        numbers, factors, bits = self._copy(stacked)
        w, scales = (part.unflatten(0, (len(ends), -1)) for part in (numbers, factors))
        found = x.new_empty((len(x), w.shape[1]), dtype=out_dtype)
        start = 0
        for expert, end in enumerate(read(ends)):
            if end > start:
                found[start:end] = ops.quantized_linear(
                    x[start:end], w[expert], scales[expert], bits=bits, out_dtype=out_dtype
                )
            start = end
        return found

    def _copy(self, weight: Copied) -> tuple[Tensor, Tensor, int]:
        """(numbers, scales, bits)."""
        if weight not in self._made:
            bits = _bits(weight, self.bits)
            self._made[weight] = (*_quantized(weight.weight, bits), bits)
        return self._made[weight]


def _group_size(columns: int, bits: int) -> int | None:
    """How many columns share a scale; None: all of a row, as always of 8 bits."""
    found = math.gcd(columns, _MOST)
    return found if bits == 4 and found >= _LEAST else None


def _copied_bytes(shape: torch.Size, bits: int) -> int:
    """What the copy of a weight takes, fp32 scales among it."""
    n, k = shape
    return n * k * bits // 8 + 4 * n * (k // (_group_size(k, bits) or k))


def reasons(linears: Iterable[Copied], bits: int) -> Iterator[Refusal]:
    """Why a model has no quantised copies."""
    for linear in linears:
        columns = linear.weight.shape[-1]
        if _bits(linear, bits) == 4 and columns % 2:
            want = "projections with an even number of inputs, of 4 bits"
            have = f"a {type(linear.module).__name__} with {columns}"
            yield Refusal("rollout_weights", want, have, 'use rollout_weights="int8"')


def note(linears: Iterable[Copied], kind: str, bits: int) -> str:
    """What copies change, and what they take."""
    # Of a weight whose values are away the size is not known here.
    there = [(linear.weight.shape, _bits(linear, bits)) for linear in linears]
    total = sum(_copied_bytes(shape, own) for shape, own in there if len(shape) == 2)
    return (
        f"rollout_weights={kind!r}: a rollout reads quantised copies of the layers' projections, "
        f"and of the head's of 8 bits, which take {total / 2**20:.3g} MiB beside the parameters "
        "while it lasts; its values are those of logprobs(weights='rollout'), not of training"
    )


def _bits(linear: Copied, bits: int) -> int:
    return max(bits, linear.least_bits or 0)


@torch.no_grad()
def _quantized(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """:func:`quantize` of some rows after the others: to the same bits, without a wide copy."""
    k = weight.shape[1]
    rows = weight.detach().split(max(_AT_ONCE // max(k, 1), 1))
    made = [quantize(part, bits, _group_size(k, bits)) for part in rows]
    numbers, scales = (torch.cat(parts).contiguous() for parts in zip(*made))
    return numbers, scales
