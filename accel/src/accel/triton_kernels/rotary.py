"""rotary: a program turns a few heads of a row. Products and sums are never fused, so that the bits
are those of eager torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from accel.triton_kernels import launching
from accel.triton_kernels.rows import Gradients, launch, power_of_two
from accel.triton_kernels.tuning import Tuning

HEADS = 4


@triton.jit
def _rotary(
    x, cos, sin, y, heads, size, pairs, x_row, x_head, sign,
    INTERLEAVED: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]).to(tl.int64)
    pair = tl.arange(0, PAIRS)[None, :]
    inside = (head < heads) & (pair < pairs)
    c = tl.load(cos + row * pairs + pair, mask=pair < pairs, other=0.0)
    s = tl.load(sin + row * pairs + pair, mask=pair < pairs, other=0.0) * sign
    if INTERLEAVED:
        first, second = 2 * pair, 2 * pair + 1
    else:
        first, second = pair, pairs + pair
    source = x + row * x_row + head * x_head
    target = y + (row * heads + head) * size
    a = tl.load(source + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + second, mask=inside, other=0.0).to(tl.float32)
    tl.store(target + first, (a * c - b * s).to(y.dtype.element_ty), mask=inside)
    tl.store(target + second, (b * c + a * s).to(y.dtype.element_ty), mask=inside)
    if REST:
        column = 2 * pairs + tl.arange(0, REST)[None, :]
        kept = (head < heads) & (column < size)
        tl.store(target + column, tl.load(source + column, mask=kept), mask=kept)


def rotary(tuning: Tuning, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    return _turned(x, cos, sin, interleaved, 1.0)


def rotary_gradient(
    tuning: Tuning,
    grad: Tensor,
    needs: Sequence[bool],
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
) -> Gradients:
    """Turned back by the same angles."""
    if needs[1] or needs[2]:
        return NotImplemented
    return _turned(grad, cos, sin, interleaved, -1.0) if needs[0] else None, None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, sign: float) -> Tensor:
    launching.require_one_device(x, cos, sin)
    y = x.new_empty(x.shape)
    if x.numel():
        heads, size = x.shape[-2:]
        rows = x.reshape(math.prod(x.shape[:-2]), heads, size)
        if rows.stride(2) != 1:
            rows = rows.contiguous()
        pairs = cos.shape[-1]
        rest = size - 2 * pairs
        launch(
            _rotary, (len(rows), triton.cdiv(heads, HEADS)), 4,
            rows, cos.contiguous(), sin.contiguous(), y, heads, size, pairs,
            rows.stride(0), rows.stride(1), sign, INTERLEAVED=interleaved, HEADS=HEADS,
            PAIRS=power_of_two(pairs), REST=power_of_two(rest) if rest else 0,
        )  # fmt: skip
    return y
