"""quantized_linear: ``act(x @ dequantize(w, scales).T + b)`` in fp32, rounded once.

The weight alone is quantised, symmetrically: a value is a whole number times the scale of its row
and group of columns. Of 8 bits the numbers are int8. Of 4 bits two lie in a byte, those of columns
2j and 2j + 1 in the low and in the high half of byte j, each plus 8.

N: rows of the weight · K: its columns · G: groups of K/G columns each; G = 1 is one scale a row
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs, linear
from accel.contracts.contract import BadInput, Contract, Cost, Sample
from accel.errors import OpArgumentError

NAME = "quantized_linear"

# bits -> (dtype of w, its values a byte, largest number that quantize makes)
LAYOUTS = {8: (torch.int8, 1, 127), 4: (torch.uint8, 2, 7)}


def quantize(w: Tensor, bits: int = 8, group_size: int | None = None) -> tuple[Tensor, Tensor]:
    """``(w, scales)`` for :func:`accel.ops.quantized_linear` of a floating point weight ``[N, K]``.

    The largest magnitude of a row's group of ``group_size`` columns (default all) becomes 127, of 4
    bits 7, and all others are rounded to the nearest: none is off by more than half a scale. A
    group whose scale would be 0, or no normal number, has the scale 1. scales are fp32, of an fp64
    weight fp64.

    OpArgumentError unless w is finite, floating point and [N, K], and group_size divides K (which 4
    bits need even).
    """
    _require_quantizable(w, bits, group_size)
    _, _, largest = LAYOUTS[bits]
    count = max(w.shape[1] // group_size, 1) if group_size else 1
    groups = w.to(checks.WIDE[w.dtype]).unflatten(1, (count, -1))
    # amax has no value for nothing.
    magnitude = groups.abs().amax(-1) if w.shape[1] else groups.new_zeros(groups.shape[:2])
    tiny = torch.finfo(groups.dtype).tiny
    scales = (magnitude / largest).masked_fill(magnitude < largest * tiny, 1)
    numbers = (groups / scales.unsqueeze(-1)).round()
    return _packed(numbers.flatten(1), bits), scales


def _packed(numbers: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return numbers.to(torch.int8)
    shifted = (numbers + 8).to(torch.uint8)
    return shifted[:, ::2] | (shifted[:, 1::2] << 4)


def whole(w: Tensor, bits: int) -> Tensor:
    """The whole numbers ``[N, K]`` that a quantised weight holds, as int8."""
    _require_bits(bits)
    dtype, _, _ = LAYOUTS[bits]
    if w.dtype is not dtype:
        raise OpArgumentError(
            f"{NAME}: w of {bits} bits must be {checks.name_of(dtype)}; found {checks.describe(w)}"
        )
    if bits == 8:
        return w
    return torch.stack((w & 15, w >> 4), -1).flatten(1).to(torch.int8) - 8


def dequantize(w: Tensor, scales: Tensor, bits: int = 8) -> Tensor:
    """The weight ``[N, K]`` that a quantised one stands for, in the dtype of its scales."""
    numbers = whole(w, bits).to(scales.dtype)
    groups: Tensor = numbers.unflatten(1, (scales.shape[1], -1))
    return (groups * scales.unsqueeze(-1)).flatten(1)


def reference(
    x: Tensor,  # [..., K]
    w: Tensor,  # int8 [N, K], or uint8 [N, K/2] of 4 bits
    scales: Tensor,  # [N, G], fp32, or fp64 beside fp64
    b: Tensor | None = None,  # [N]
    bits: int = 8,
    act: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:  # [..., N]
    return linear.reference(x, dequantize(w, scales, bits), b, act, out_dtype)


def _require_bits(bits: int) -> None:
    if not isinstance(bits, int) or bits not in LAYOUTS:
        known = " or ".join(map(str, LAYOUTS))
        raise OpArgumentError(f"{NAME}: bits must be {known}; found {bits!r}")


def _require_quantizable(w: Tensor, bits: int, group_size: int | None) -> None:
    checks.refuse_nontensor(NAME, {"w": w}, optional=())
    checks.require_floats(NAME, w, {}, key="w")
    _require_bits(bits)
    if w.dim() != 2:
        raise OpArgumentError(f"{NAME}: w must be [out, in]; found {checks.describe(w)}")
    _, per_byte, _ = LAYOUTS[bits]
    if w.shape[1] % per_byte:
        raise OpArgumentError(
            f"{NAME}: w must have an even number of columns to be of {bits} bits; found "
            f"{checks.describe(w)}"
        )
    if group_size is not None and (group_size < 1 or w.shape[1] % group_size):
        raise OpArgumentError(
            f"{NAME}: group_size must divide w's {w.shape[1]} columns; found {group_size}"
        )
    if not w.is_meta and not w.isfinite().all():
        raise OpArgumentError(f"{NAME}: w must be finite; found infinity or NaN")


def check(
    x: Tensor, w: Tensor, scales: Tensor, b: Tensor | None, bits: int, act: str | None,
    out_dtype: torch.dtype | None,
) -> None:  # fmt: skip
    given = {"x": x, "w": w, "scales": scales, "b": b}
    checks.refuse_nontensor(NAME, given, optional=("b",))
    checks.require_floats(NAME, x, {"b": b})
    checks.require_rows(NAME, x)
    _require_bits(bits)
    dtype, per_byte, _ = LAYOUTS[bits]
    checks.require_integers(NAME, f"w of {bits} bits", w, like="x", other=x, dtypes=(dtype,))
    if w.dim() != 2 or w.shape[1] * per_byte != x.shape[-1]:
        columns = "in" if per_byte == 1 else f"in / {per_byte}"
        raise OpArgumentError(
            f"{NAME}: w of {bits} bits must be [out, {columns}], where in is x's last dimension; "
            f"found {checks.describe(w)} beside {checks.describe(x)}"
        )
    checks.require_wide(NAME, "scales", scales, x)
    if not _in_groups(scales, w.shape[0], x.shape[-1]):
        raise OpArgumentError(
            f"{NAME}: scales must be [out, groups] = [{w.shape[0]}, G], where G divides in = "
            f"{x.shape[-1]}; found {checks.describe(scales)}"
        )
    checks.require_bias(NAME, "b", b, w.shape[0])
    checks.require_act(NAME, act)
    checks.require_out_dtype(NAME, out_dtype)


def _in_groups(scales: Tensor, n: int, k: int) -> bool:
    shape = scales.shape
    return len(shape) == 2 and shape[0] == n and shape[1] > 0 and k % shape[1] == 0


def fits(x: Tensor, w: Tensor, scales: Tensor, b: Tensor | None) -> bool:
    """Of ``bits`` nothing is known here: w's dtype says how its values lie, and a kernel that was
    bound for the other one refuses it."""
    rows, weight, dtype = x.shape, w.shape, w.dtype
    per_byte = 1 if dtype is torch.int8 else 2
    if not (per_byte == 1 or dtype is torch.uint8):
        return False
    if len(weight) != 2 or not rows or rows[-1] != weight[1] * per_byte:
        return False
    if scales.dtype is not checks.WIDE.get(x.dtype) or not _in_groups(scales, weight[0], rows[-1]):
        return False
    return b is None or (b.shape == weight[:1] and b.dtype is x.dtype)


def fake(
    x: Tensor, w: Tensor, scales: Tensor, b: Tensor | None = None, bits: int = 8,
    act: str | None = None, out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=out_dtype or x.dtype)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, scales: Tensor, b: Tensor | None,
    bits: int, act: str | None, out_dtype: torch.dtype | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """That of linear by the weight made again; a scale has the sum over its group of the weight's
    gradient times the whole numbers."""
    wide = scales.dtype
    dx, dw, db, *_ = linear.backward(
        grad, (needs[0], needs[2], needs[3]), x.to(wide), dequantize(w, scales, bits),
        None if b is None else b.to(wide), act, None,
    )  # fmt: skip
    d_scales = None
    if dw is not None:
        d_scales = (dw * whole(w, bits)).unflatten(1, (scales.shape[1], -1)).sum(-1)
    return (
        None if dx is None else dx.to(x.dtype),
        None,
        d_scales,
        None if db is None else db.to(x.dtype),
        None,
        None,
        None,
    )


def cost(x: Tensor, w: Tensor, scales: Tensor, *rest: Any) -> Cost:
    n, k = w.shape[0], x.shape[-1]
    m = x.numel() // max(k, 1)
    kept = w.numel() + scales.numel() * scales.element_size()
    return Cost(bytes=(m * k + m * n) * x.element_size() + kept, flops=2 * m * n * k)


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def stored(name: str, shape: tuple[int, int], bits: int, device: torch.device,
               layout: str) -> Tensor:  # fmt: skip
        """Bytes of every value."""
        n, columns = shape
        if layout == "transposed":
            drawn = draw.integers(name, (columns, n), 256, device).t()
        elif layout == "sliced":
            drawn = draw.integers(name, (n, columns + 5), 256, device)[:, 3:-2]
        else:
            drawn = draw.integers(name, (n, columns), 256, device)
        return drawn.to(torch.uint8) if bits == 4 else (drawn - 128).to(torch.int8)

    def case(name: str, shape: tuple[int, ...], n: int, groups: int = 1, *, bits: int = 8,
             bias: bool = False, act: Any = None, out_dtype: Any = None,
             layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            k = shape[-1]
            columns = k if bits == 8 else k // 2
            # So that results have an RMS near one: that of the numbers is 74, or 4.6.
            unit = (74 if bits == 8 else 4.6) * max(k, 1) ** 0.5
            return (
                draw.rows(f"{name}.x", shape, dtype, device, layout),
                stored(f"{name}.w", (n, columns), bits, device, layout),
                draw.plain(f"{name}.scales", (n, groups), checks.WIDE[dtype], device) / unit,
                draw.plain(f"{name}.b", (n,), dtype, device) if bias else None,
                bits,
                act,
                out_dtype,
            )

        return Sample(name, make)

    yield case("even", (16, 64), 32, bias=True)
    yield case("odd", (7, 101), 33, bias=True)
    yield case("vector", (65,), 17, 5, bias=True)
    yield case("batched", (2, 3, 5, 31), 9)
    yield case("nibbles", (7, 50), 19, bits=4, bias=True)
    yield case("nibbles_grouped", (5, 96), 12, 3, bits=4)
    yield case("nibbles_odd_groups", (5, 30), 12, 10, bits=4, act="silu")
    yield case("one", (1, 1), 1, bias=True)
    yield case("no_rows", (0, 16), 8, 2, bias=True)
    yield case("no_sum", (4, 0), 8, bias=True)
    yield case("long_sum", (3, 2052), 7, 4, bits=4)
    yield case("many_rows", (257, 48), 20, bias=True)
    for layout in inputs.LAYOUTS:
        bits = 4 if layout == "sliced" else 8
        yield case(f"layout_{layout}", (6, 40), 24, 2, bits=bits, bias=True, layout=layout)
    yield case("out_fp32", (9, 50), 30, act="gelu", out_dtype=torch.float32)


def bad_inputs() -> Iterable[BadInput]:
    good = {
        "x": inputs.maker(NAME, "x", (3, 8)),
        "w": lambda dtype, device: torch.ones(5, 8, dtype=torch.int8).to(device),
        "scales": lambda dtype, device: torch.ones(5, 2, dtype=checks.WIDE[dtype]).to(device),
        "b": inputs.maker(NAME, "b", (5,)),
        "bits": 8,
        **{"act": None, "out_dtype": None},
    }
    yield inputs.spoil(good, "sum_differs", "x's last dimension", x=lambda x: x[:, :7])
    yield inputs.spoil(good, "weight_rank", "w of 8 bits must be", w=lambda w: w[0])
    yield inputs.spoil(good, "weight_floating", "must be int8", w=lambda w: w.float())
    yield inputs.spoil(good, "bytes_of_4_bits", "must be uint8", bits=4)
    yield inputs.spoil(good, "odd_bits", "bits must be 8 or 4", bits=3)
    yield inputs.spoil(good, "groups_uneven", "divides in", scales=lambda s: s[:, [0, 1, 1]])
    yield inputs.spoil(good, "no_groups", "divides in", scales=lambda s: s[:, :0])
    yield inputs.spoil(good, "scales_of_columns", "divides in", scales=lambda s: s.t())
    yield inputs.spoil(good, "scales_narrow", "dtype", scales=lambda s: s.bfloat16())
    yield inputs.spoil(good, "scalar_x", "at least one dimension", x=lambda x: x[0, 0])
    yield inputs.spoil(good, "bias_shape", "b must be", b=lambda b: b[:1])
    yield inputs.spoil(good, "dtype_differs", "dtype", b=lambda b: b.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int())
    yield inputs.spoil(good, "unknown_act", "unknown act", act="relo")
    yield inputs.spoil(good, "integer_out", "out_dtype", out_dtype=torch.int32)
    yield inputs.spoil(good, "other_device", "device", w=lambda w: w.to("meta"))


QUANTIZED_LINEAR = Contract(
    name=NAME,
    family="LinearBuilder",
    schema="(Tensor x, Tensor w, Tensor scales, Tensor? b=None, int bits=8, str? act=None, "
    "ScalarType? out_dtype=None) -> Tensor",
    options=("bits", "act", "out_dtype"),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="lower",
    wide=("scales",),
    reference_invariant=False,
    tolerance=linear.LINEAR.tolerance,
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
)
