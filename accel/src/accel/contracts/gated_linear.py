"""gated_linear: ``act(x @ w_gate.T + b_gate) * (x @ w_up.T + b_up)`` in fp32, rounded once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs, linear
from accel.contracts.activation import activate, slope_times
from accel.contracts.contract import BadInput, Contract, Cost, Sample

NAME = "gated_linear"


def reference(
    x: Tensor,  # [..., K]
    w_gate: Tensor,  # [N, K]
    w_up: Tensor,  # [N, K]
    b_gate: Tensor | None = None,  # [N]
    b_up: Tensor | None = None,  # [N]
    act: str = "silu",
    out_dtype: torch.dtype | None = None,
) -> Tensor:  # [..., N]
    wide = checks.WIDE[x.dtype]
    gate = linear.reference(x, w_gate, b_gate, act, wide)
    up = linear.reference(x, w_up, b_up, None, wide)
    return (gate * up).to(out_dtype or x.dtype)


def check(
    x: Tensor, w_gate: Tensor, w_up: Tensor, b_gate: Tensor | None, b_up: Tensor | None,
    act: str, out_dtype: torch.dtype | None,
) -> None:  # fmt: skip
    given = {"x": x, "w_gate": w_gate, "w_up": w_up, "b_gate": b_gate, "b_up": b_up}
    checks.refuse_nontensor(NAME, given, optional=("b_gate", "b_up"))
    checks.require_floats(NAME, x, {k: v for k, v in given.items() if k != "x"})
    checks.require_weight(NAME, "w_gate", w_gate, x)
    checks.require_weight(NAME, "w_up", w_up, x)
    checks.require_same_shape(NAME, "w_up", w_up, "w_gate", w_gate)
    checks.require_bias(NAME, "b_gate", b_gate, w_gate.shape[0])
    checks.require_bias(NAME, "b_up", b_up, w_gate.shape[0])
    checks.require_act(NAME, act, optional=False)
    checks.require_out_dtype(NAME, out_dtype)


def fits(
    x: Tensor, w_gate: Tensor, w_up: Tensor, b_gate: Tensor | None, b_up: Tensor | None
) -> bool:
    return (
        w_gate.shape == w_up.shape and linear.fits(x, w_gate, b_gate) and linear.fits(x, w_up, b_up)
    )


def fake(
    x: Tensor, w_gate: Tensor, w_up: Tensor, b_gate: Tensor | None = None,
    b_up: Tensor | None = None, act: str = "silu", out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], w_gate.shape[0]), dtype=out_dtype or x.dtype)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w_gate: Tensor, w_up: Tensor,
    b_gate: Tensor | None, b_up: Tensor | None, act: str, out_dtype: torch.dtype | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Both products are computed again, in fp32, rather than kept."""
    wide = checks.WIDE[x.dtype]
    gate = linear.reference(x, w_gate, b_gate, None, wide)
    up = linear.reference(x, w_up, b_up, None, wide)
    grad = grad.to(wide)
    d_up = (grad * activate(gate, act)).to(x.dtype)
    d_gate = slope_times(grad * up, gate, act).to(x.dtype)
    through_gate = linear.backward(
        d_gate, (needs[0], needs[1], needs[3]), x, w_gate, b_gate, None, None
    )
    through_up = linear.backward(d_up, (needs[0], needs[2], needs[4]), x, w_up, b_up, None, None)
    dx = through_gate[0] + through_up[0] if needs[0] else None  # type: ignore[operator]
    return dx, through_gate[1], through_up[1], through_gate[2], through_up[2], None, None


def cost(x: Tensor, w_gate: Tensor, *rest: Any) -> Cost:
    n, k = w_gate.shape
    m = x.numel() // max(k, 1)
    return Cost(bytes=(m * k + 2 * n * k + m * n) * x.element_size(), flops=4 * m * n * k)


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], n: int, *, bias: bool = False, act: Any = "silu",
             out_dtype: Any = None, layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            k = shape[-1]
            return (
                draw.rows(f"{name}.x", shape, dtype, device, layout),
                draw.weight(f"{name}.gate", (n, k), dtype, device, layout),
                draw.weight(f"{name}.up", (n, k), dtype, device, layout),
                draw.plain(f"{name}.b_gate", (n,), dtype, device) if bias else None,
                draw.plain(f"{name}.b_up", (n,), dtype, device) if bias else None,
                act,
                out_dtype,
            )

        return Sample(name, make)

    yield case("even", (16, 64), 32)
    yield case("odd", (7, 100), 33, bias=True)
    yield case("vector", (65,), 17, bias=True)
    yield case("batched", (2, 3, 5, 31), 9)
    yield case("one", (1, 1), 1, bias=True)
    yield case("no_rows", (0, 16), 8)
    yield case("no_sum", (4, 0), 8, bias=True)
    yield case("long_sum", (5, 2051), 13)
    yield case("many_rows", (257, 48), 20)
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 40), 24, bias=True, layout=layout)
    for act in ("relu", "gelu", "gelu_tanh"):
        yield case(f"act_{act}", (9, 50), 30, bias=True, act=act)
    yield case("out_fp32", (9, 50), 30, bias=True, out_dtype=torch.float32)


def bad_inputs() -> Iterable[BadInput]:
    shapes = {"x": (3, 8), "w_gate": (5, 8), "w_up": (5, 8), "b_gate": (5,), "b_up": (5,)}
    good: dict[str, Any] = {k: inputs.maker(NAME, k, shape) for k, shape in shapes.items()}
    good |= {"act": "silu", "out_dtype": None}
    yield inputs.spoil(good, "sum_differs", "last dimension", x=lambda x: x[:, :7])
    yield inputs.spoil(good, "gate_rank", "w_gate must be", w_gate=lambda w: w[0])
    yield inputs.spoil(good, "weights_differ", "w_up must have", w_up=lambda w: w[:4])
    yield inputs.spoil(good, "bias_shape", "b_up must be", b_up=lambda b: b[:1])
    yield inputs.spoil(good, "dtype_differs", "dtype", w_up=lambda w: w.double())
    yield inputs.spoil(good, "unknown_act", "unknown act", act="swosh")
    yield inputs.spoil(good, "no_act", "unknown act", act=None)
    yield inputs.spoil(good, "other_device", "device", w_gate=lambda w: w.to("meta"))


GATED_LINEAR = Contract(
    name=NAME,
    family="LinearBuilder",
    schema="(Tensor x, Tensor w_gate, Tensor w_up, Tensor? b_gate=None, Tensor? b_up=None, "
    'str act="silu", ScalarType? out_dtype=None) -> Tensor',
    options=("act", "out_dtype"),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="lower",
    reference_invariant=False,
    tolerance=linear.LINEAR.tolerance,
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
)
