"""norm_linear: ``act(norm(x) @ w.T + b)``, the norm that stands before a product; in fp32.

``kind`` is ``"rms"``, of :mod:`accel.contracts.rms_norm`, or ``"layer"``, of
:mod:`accel.contracts.layer_norm`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs, layer_norm, linear, rms_norm
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance, rounded_twice
from accel.errors import OpArgumentError, close_matches

NAME = "norm_linear"
KINDS = ("rms", "layer")


def reference(
    x: Tensor,  # [..., K]
    w: Tensor,  # [N, K]
    norm_w: Tensor | None = None,  # [K]
    norm_b: Tensor | None = None,  # [K], of a layer norm
    b: Tensor | None = None,  # [N]
    kind: str = "rms",
    eps: float = 1e-6,
    act: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:  # [..., N]
    wide = x.to(checks.WIDE[x.dtype])
    normed = normalised(wide, norm_w, norm_b, kind, eps)
    return linear.reference(normed, w, b, act, out_dtype or x.dtype)


def normalised(
    x: Tensor, norm_w: Tensor | None, norm_b: Tensor | None, kind: str, eps: float
) -> Tensor:
    """The norm of x in x's dtype."""
    require_kind(kind, norm_b)
    if kind == "rms":
        return rms_norm.reference(x, norm_w, eps)
    return layer_norm.reference(x, norm_w, norm_b, eps)


def require_kind(kind: str, norm_b: Tensor | None) -> None:
    """Asked by kernels too: what is bound for one kind may be called with the other's tensors."""
    if kind not in KINDS:
        raise OpArgumentError(f"{NAME}: unknown kind {kind!r}; {close_matches(str(kind), KINDS)}")
    if kind == "rms" and norm_b is not None:
        raise OpArgumentError(
            f"{NAME}: norm_b must be None where kind is 'rms', which adds nothing; found "
            f"{checks.describe(norm_b)}"
        )


def check(
    x: Tensor, w: Tensor, norm_w: Tensor | None, norm_b: Tensor | None, b: Tensor | None,
    kind: str, eps: float, act: str | None, out_dtype: torch.dtype | None,
) -> None:  # fmt: skip
    given = {"x": x, "w": w, "norm_w": norm_w, "norm_b": norm_b, "b": b}
    checks.refuse_nontensor(NAME, given, optional=("norm_w", "norm_b", "b"))
    checks.require_floats(NAME, x, {name: t for name, t in given.items() if name != "x"})
    checks.require_weight(NAME, "w", w, x)
    checks.require_bias(NAME, "norm_w", norm_w, x.shape[-1])
    checks.require_bias(NAME, "norm_b", norm_b, x.shape[-1])
    checks.require_bias(NAME, "b", b, w.shape[0])
    require_kind(kind, norm_b)
    checks.require_eps(NAME, eps)
    checks.require_act(NAME, act)
    checks.require_out_dtype(NAME, out_dtype)


def fits(
    x: Tensor, w: Tensor, norm_w: Tensor | None, norm_b: Tensor | None, b: Tensor | None
) -> bool:
    return linear.fits(x, w, b) and layer_norm.fits(x, norm_w, norm_b)


def fake(
    x: Tensor, w: Tensor, norm_w: Tensor | None = None, norm_b: Tensor | None = None,
    b: Tensor | None = None, kind: str = "rms", eps: float = 1e-6, act: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], w.shape[0]), dtype=out_dtype or x.dtype)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, norm_w: Tensor | None,
    norm_b: Tensor | None, b: Tensor | None, kind: str, eps: float, act: str | None,
    out_dtype: torch.dtype | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The norm is computed again rather than kept."""
    normed = normalised(x, norm_w, norm_b, kind, eps)
    through_norm = (needs[0], needs[2], needs[3])
    d_normed, dw, db, *_ = linear.backward(
        grad, (any(through_norm), needs[1], needs[4]), normed, w, b, act, None
    )
    dx = d_norm_w = d_norm_b = None
    if d_normed is not None and kind == "rms":
        dx, d_norm_w, _ = rms_norm.backward(d_normed, through_norm, x, norm_w, eps)
    elif d_normed is not None:
        dx, d_norm_w, d_norm_b, _ = layer_norm.backward(
            d_normed, through_norm, x, norm_w, norm_b, eps
        )
    return dx, dw, d_norm_w, d_norm_b, db, None, None, None, None


def cost(x: Tensor, w: Tensor, *rest: Any) -> Cost:
    n, k = w.shape
    m = x.numel() // max(k, 1)
    bytes_moved = (m * k + n * k + m * n) * x.element_size()
    return Cost(bytes=bytes_moved, flops=2 * m * n * k + 4 * m * k)


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], n: int, kind: str = "rms", *, weight: bool = True,
             bias: bool = False, eps: float = 1e-6, act: Any = None, out_dtype: Any = None,
             layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            k = shape[-1]
            shifted = bias and kind == "layer"
            return (
                draw.rows(f"{name}.x", shape, dtype, device, layout),
                draw.weight(f"{name}.w", (n, k), dtype, device, layout),
                draw.plain(f"{name}.norm_w", (k,), dtype, device) if weight else None,
                draw.plain(f"{name}.norm_b", (k,), dtype, device) if shifted else None,
                draw.plain(f"{name}.b", (n,), dtype, device) if bias else None,
                kind,
                eps,
                act,
                out_dtype,
            )

        return Sample(name, make)

    yield case("even", (16, 64), 32, "layer", bias=True)
    yield case("odd", (7, 101), 33, bias=True)
    yield case("vector", (65,), 17)
    yield case("batched", (2, 3, 5, 31), 9, "layer")
    yield case("no_weight", (5, 77), 11, weight=False)
    yield case("one", (1, 1), 1, bias=True)
    yield case("no_rows", (0, 16), 8, "layer", bias=True)
    yield case("no_sum", (4, 0), 8, bias=True)
    yield case("long_sum", (3, 2051), 7)
    yield case("many_rows", (129, 24), 20, "layer")
    yield case("layout_transposed", (6, 40), 24, "layer", bias=True, layout="transposed")
    yield case("layout_sliced", (6, 40), 24, bias=True, layout="sliced")
    yield case("act", (9, 50), 30, eps=0.5, act="silu")
    yield case("out_fp32", (9, 50), 30, "layer", bias=True, out_dtype=torch.float32)


def bad_inputs() -> Iterable[BadInput]:
    shapes = {"x": (3, 8), "w": (5, 8), "norm_w": (8,), "norm_b": (8,), "b": (5,)}
    good: dict[str, Any] = {k: inputs.maker(NAME, k, shape) for k, shape in shapes.items()}
    good |= {"kind": "layer", "eps": 1e-6, "act": None, "out_dtype": None}
    yield inputs.spoil(good, "sum_differs", "last dimension", x=lambda x: x[:, :7])
    yield inputs.spoil(good, "weight_rank", "w must be", w=lambda w: w[0])
    yield inputs.spoil(good, "norm_weight_shape", "norm_w must be", norm_w=lambda w: w[:7])
    yield inputs.spoil(good, "norm_bias_shape", "norm_b must be", norm_b=lambda b: b[:1])
    yield inputs.spoil(good, "bias_shape", "b must be", b=lambda b: b[:1])
    yield inputs.spoil(good, "bias_of_rms", "norm_b must be None", kind="rms")
    yield inputs.spoil(good, "unknown_kind", "unknown kind", kind="rns")
    yield inputs.spoil(good, "no_kind", "unknown kind", kind=None)
    yield inputs.spoil(good, "negative_eps", "eps", eps=-1.0)
    yield inputs.spoil(good, "dtype_differs", "dtype", norm_w=lambda w: w.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int())
    yield inputs.spoil(good, "unknown_act", "unknown act", act="relo")
    yield inputs.spoil(good, "integer_out", "out_dtype", out_dtype=torch.int32)
    yield inputs.spoil(good, "other_device", "device", w=lambda w: w.to("meta"))


NORM_LINEAR = Contract(
    name=NAME,
    family="LinearBuilder",
    schema="(Tensor x, Tensor w, Tensor? norm_w=None, Tensor? norm_b=None, Tensor? b=None, "
    'str kind="rms", float eps=1e-06, str? act=None, ScalarType? out_dtype=None) -> Tensor',
    options=("kind", "act", "out_dtype"),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="lower",
    reference_invariant=False,
    # An implementation may round the normalised rows.
    tolerance=rounded_twice(Tolerance(rms=1e-6, peak=1e-5)),
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
)
