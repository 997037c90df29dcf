"""transformer_layer: a whole BERT-style layer as one op, which keeps nothing but its arguments.

What it is stands in :mod:`accel.contracts.transformer`; here it is made of the references of the
ops it is composed of, each of which rounds once. B: sequences · S: positions · H: hidden · I: inner
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance, rounded_once
from accel.contracts.transformer import WEIGHTS, Pieces, Tape, layer
from accel.errors import OpArgumentError

NAME = "transformer_layer"


def reference(
    x: Tensor,  # [B, S, H]
    qkv_w: Tensor,  # [3H, H]
    qkv_b: Tensor,  # [3H]
    out_w: Tensor,  # [H, H]
    out_b: Tensor,  # [H]
    attn_norm_w: Tensor,  # [H]
    attn_norm_b: Tensor,  # [H]
    up_w: Tensor,  # [I, H]
    up_b: Tensor,  # [I]
    down_w: Tensor,  # [H, I]
    down_b: Tensor,  # [H]
    norm_w: Tensor,  # [H]
    norm_b: Tensor,  # [H]
    mask: Tensor | None = None,  # [B or 1, heads or 1, S or 1, S]
    seed: Tensor | None = None,  # [3], int64: of attention, of its output, of the MLP's
    heads: int = 1,
    pre_norm: bool = True,
    causal: bool = False,
    act: str = "gelu_tanh",
    eps: float = 1e-12,
    attn_dropout: float = 0.0,
    hidden_dropout: float = 0.0,
) -> Tensor:  # [B, S, H]
    weights = (
        qkv_w, qkv_b, out_w, out_b, attn_norm_w, attn_norm_b,
        up_w, up_b, down_w, down_b, norm_w, norm_b,
    )  # fmt: skip
    references = Pieces(lambda contract, args: contract.reference(*args))
    return layer(
        references, x, weights, mask, seed, heads, pre_norm, causal, act, eps, attn_dropout,
        hidden_dropout,
    )  # fmt: skip


def _shapes(hidden: int, inner: int) -> tuple[tuple[int, ...], ...]:
    """Of the weights, in order."""
    one = (hidden,)
    return (
        (3 * hidden, hidden), (3 * hidden,), (hidden, hidden), one, one, one,
        (inner, hidden), (inner,), (hidden, inner), one, one, one,
    )  # fmt: skip


def check(x: Tensor, *args: Any) -> None:
    weights, (mask, seed) = dict(zip(WEIGHTS, args[:12])), args[12:14]
    heads, pre_norm, causal, act, eps, attn_dropout, hidden_dropout = args[14:]
    given = {"x": x, **weights, "mask": mask, "seed": seed}
    checks.refuse_nontensor(NAME, given, optional=("mask", "seed"))
    checks.require_floats(NAME, x, {**weights, "mask": mask})
    if x.dim() != 3:
        raise OpArgumentError(f"{NAME}: x must be [B, S, H]; found {checks.describe(x)}")
    hidden = x.shape[2]
    checks.require_weight(NAME, "up_w", weights["up_w"], x)
    shapes = _shapes(hidden, weights["up_w"].shape[0])
    for (name, w), shape in zip(weights.items(), shapes):
        if w.shape != shape:
            raise OpArgumentError(
                f"{NAME}: {name} must be {list(shape)} beside x {checks.describe(x)}; found "
                f"{checks.describe(w)}"
            )
    require_heads(heads, hidden)
    if mask is not None:
        require_mask(mask, x, heads)
    checks.require_flag(NAME, "pre_norm", pre_norm)
    checks.require_flag(NAME, "causal", causal)
    checks.require_act(NAME, act, optional=False)
    checks.require_eps(NAME, eps)
    _require_seed(seed, x, {"attn_dropout": attn_dropout, "hidden_dropout": hidden_dropout})


def require_heads(heads: int, hidden: int) -> None:
    if isinstance(heads, bool) or not isinstance(heads, int):
        raise TypeError(f"{NAME}: heads must be an int, not {type(heads).__name__}")
    if heads < 1 or hidden % heads:
        raise OpArgumentError(
            f"{NAME}: heads must divide H; found heads={heads} beside H = {hidden}"
        )


def require_mask(mask: Tensor, x: Tensor, heads: int) -> None:
    batch, length = x.shape[:2]
    wanted = ((1, batch), (1, heads), (1, length), (length,))
    if mask.dim() != 4 or any(size not in sizes for size, sizes in zip(mask.shape, wanted)):
        raise OpArgumentError(
            f"{NAME}: mask must be [B or 1, heads or 1, S or 1, S] with B = {batch}, "
            f"heads = {heads}, S = {length}; found {checks.describe(mask)}"
        )


def _require_seed(seed: Tensor | None, x: Tensor, rates: dict[str, float]) -> None:
    for name, rate in rates.items():
        checks.require_number(NAME, name, rate)
        if not 0 <= rate <= 1:
            raise OpArgumentError(f"{NAME}: {name} must lie in [0, 1]; found {rate}")
        if rate > 0 and seed is None:
            raise OpArgumentError(f"{NAME}: {name} = {rate} needs a seed: int64[3]; found None")
    if seed is not None:
        checks.require_integers(NAME, "seed", seed, like="x", other=x)
        if seed.shape != (3,):
            raise OpArgumentError(f"{NAME}: seed must be [3]; found {checks.describe(seed)}")


def fits(x: Tensor, *tensors: Any) -> bool:
    shape, dtype, weights, mask, seed = x.shape, x.dtype, tensors[:12], tensors[12], tensors[13]
    if len(shape) != 3 or len(weights[6].shape) != 2:
        return False
    batch, length, hidden = shape
    for w, wanted in zip(weights, _shapes(hidden, weights[6].shape[0])):
        if w.shape != wanted or w.dtype is not dtype:
            return False
    if mask is not None:
        shape = mask.shape
        if len(shape) != 4 or shape[0] not in (1, batch) or shape[2] not in (1, length):
            return False
        if shape[3] != length or mask.dtype is not dtype:
            return False
    return seed is None or (seed.shape == (3,) and seed.dtype is torch.int64)


def fake(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(x.shape)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, *args: Any
) -> tuple[Tensor | None, ...]:
    """The layer is computed again, and gone back through by the formulas of its pieces."""
    return gradients(Tape(), grad, needs, x, *args)


def gradients(
    tape: Tape, grad: Tensor, needs: tuple[bool, ...], x: Tensor, *args: Any
) -> tuple[Tensor | None, ...]:
    """:func:`backward` over the pieces of a tape, which is empty."""
    weights, (mask, seed), options = args[:12], args[12:14], args[14:]
    pre_norm = options[1]
    layer(tape, x, weights, mask, seed, *options)
    frozen = {name: not need for name, need in zip((*WEIGHTS, "mask"), needs[1:])}

    def back(grad: Tensor, name: str) -> Any:
        """Through a piece of x, w, b; the weights are called ``name``_w and ``name``_b."""
        kept = frozen[f"{name}_w"], frozen[f"{name}_b"]
        dx, found[f"{name}_w"], found[f"{name}_b"] = tape.back(grad, frozen=kept)[:3]
        return dx

    found: dict[str, Tensor | None] = {}
    if not pre_norm:
        grad = back(grad, "norm")
    dh, da = tape.back(grad)[:2]
    dh = back(dh, "down")
    dh = tape.back(dh)[0]
    dh = back(dh, "up")
    da = da + back(dh, "attn_norm") if pre_norm else back(da + dh, "attn_norm")
    dh, dx = tape.back(da)[:2]
    (batch, length, hidden), heads = x.shape, options[0]
    dh = back(dh, "out").reshape(batch * length, heads, hidden // heads)
    dq, dk, dv, _, found["mask"], *_ = tape.back(dh, frozen=(False,) * 3 + (frozen["mask"],))
    dh = back(torch.stack((dq, dk, dv), 1).reshape(batch, length, 3 * hidden), "qkv")
    dx = dx + (back(dh, "norm") if pre_norm else dh)
    return dx, *(found[name] for name in (*WEIGHTS, "mask")), None, *(None for _ in options)


def cost(x: Tensor, *args: Any) -> Cost:
    batch, length, hidden = x.shape
    inner = args[6].shape[0]
    products = batch * length * hidden * (4 * hidden + 2 * inner)
    scores = 2 * batch * length * length * hidden
    moved = 2 * x.numel() + sum(w.numel() for w in args[:12])
    return Cost(bytes=moved * x.element_size(), flops=2 * (products + scores))


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(
        name: str, shape: tuple[int, int, int], inner: int, heads: int, *,
        mask: tuple[int, int, int, int] | None = None, pre_norm: bool = True, causal: bool = False,
        act: str = "gelu_tanh", eps: float = 1e-12, dropout: tuple[float, float] = (0.0, 0.0),
        layout: str = "plain",
    ) -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            def weight(of: str, size: tuple[int, ...]) -> Tensor:
                if len(size) == 2:
                    return draw.weight(f"{name}.{of}", (size[0], size[1]), dtype, device, layout)
                # Norms near one, biases near zero, as layers have them.
                drawn = draw.plain(f"{name}.{of}", size, dtype, device) * 0.25
                return drawn + 1 if of.endswith("norm_w") else drawn

            seed = torch.tensor([3, 1 << 40, -5], device=device) if any(dropout) else None
            return (
                draw.rows(f"{name}.x", shape, dtype, device, layout),
                *(weight(of, s) for of, s in zip(WEIGHTS, _shapes(shape[2], inner))),
                None if mask is None else draw.plain(f"{name}.mask", mask, dtype, device) * 2,
                seed, heads, pre_norm, causal, act, eps, *dropout,
            )  # fmt: skip

        return Sample(name, make)

    yield case("even", (2, 4, 8), 32, 2)
    yield case("key_mask", (3, 5, 21), 31, 3, mask=(3, 1, 1, 5))
    yield case("post_norm", (2, 5, 16), 24, 4, pre_norm=False, act="gelu")
    yield case("causal", (2, 6, 16), 24, 2, causal=True, mask=(1, 1, 6, 6), act="relu")
    yield case("large_eps", (2, 3, 12), 20, 2, eps=0.5)
    yield case("dropout", (2, 5, 16), 24, 2, dropout=(0.3, 0.2), mask=(2, 1, 5, 5))
    yield case("dropout_post", (2, 5, 16), 24, 2, dropout=(0.0, 0.4), pre_norm=False)
    yield case("one", (1, 1, 6), 5, 1)
    yield case("no_sequences", (0, 3, 8), 8, 2)
    yield case("many_rows", (2, 33, 16), 16, 2)
    yield case("layout_transposed", (2, 3, 12), 20, 2, mask=(2, 1, 3, 3), layout="transposed")
    yield case("layout_sliced", (2, 3, 12), 20, 2, layout="sliced")


def bad_inputs() -> Iterable[BadInput]:
    shapes = dict(zip(WEIGHTS, _shapes(8, 6)))
    good: dict[str, Any] = {"x": inputs.maker(NAME, "x", (2, 3, 8))}
    good |= {name: inputs.maker(NAME, name, shape) for name, shape in shapes.items()}
    good |= {
        "mask": inputs.maker(NAME, "mask", (2, 1, 3, 3)), "seed": None, "heads": 2,
        "pre_norm": True, "causal": False, "act": "gelu_tanh", "eps": 1e-12, "attn_dropout": 0.0,
        "hidden_dropout": 0.0,
    }  # fmt: skip
    yield inputs.spoil(good, "rank", "x must be", x=lambda x: x[0], mask=None)
    yield inputs.spoil(good, "hidden_differs", "last dimension", x=lambda x: x[..., :7])
    yield inputs.spoil(good, "up_rank", "up_w must be", up_w=lambda w: w[0])
    for name in ("qkv_w", "out_b", "attn_norm_w", "up_b", "down_w", "norm_b"):
        yield inputs.spoil(good, f"{name}_shape", f"{name} must be", **{name: lambda w: w[:-1]})
    yield inputs.spoil(good, "heads_do_not_divide", "heads must divide", heads=3)
    yield inputs.spoil(good, "no_heads", "heads must divide", heads=0)
    yield inputs.spoil(good, "mask_rank", "mask must be", mask=lambda mask: mask[0])
    yield inputs.spoil(good, "mask_keys", "mask must be", mask=lambda mask: mask[..., :2])
    yield inputs.spoil(good, "mask_batch", "mask must be", mask=lambda mask: mask[[0, 1, 1]])
    yield inputs.spoil(good, "unknown_act", "unknown act", act="gelo")
    yield inputs.spoil(good, "negative_eps", "eps", eps=-1.0)
    yield inputs.spoil(good, "no_seed", "needs a seed", hidden_dropout=0.5)
    yield inputs.spoil(good, "rate", "attn_dropout must lie", attn_dropout=1.5)
    yield inputs.spoil(good, "seed_shape", "seed must be", seed=lambda _: torch.tensor([1, 2]))
    yield inputs.spoil(good, "seed_dtype", "seed must be", seed=lambda _: torch.ones(3))
    yield inputs.spoil(good, "dtype_differs", "dtype", out_w=lambda w: w.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int())
    yield inputs.spoil(good, "other_device", "device", down_w=lambda w: w.to("meta"))


_ONCE = dict(rounded_once(Tolerance(rms=1e-6, peak=1e-5)))

TRANSFORMER_LAYER = Contract(
    name=NAME,
    family="TransformerBuilder",
    schema="(Tensor x, " + ", ".join(f"Tensor {name}" for name in WEIGHTS) + ", "
    "Tensor? mask=None, Tensor? seed=None, int heads=1, bool pre_norm=True, bool causal=False, "
    'str act="gelu_tanh", float eps=1e-12, float attn_dropout=0.0, float hidden_dropout=0.0)'
    " -> Tensor",
    options=("heads", "pre_norm", "causal", "act", "attn_dropout", "hidden_dropout"),
    presence=("mask",),
    sizes={"hidden_size": ("x", -1)},
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="lower",
    reference_invariant=False,
    tolerance=_ONCE
    | {
        # Ten roundings between x and y, of which each adds its own: 2.5 times the error of one,
        # measured with H = 8 to 32 (6.2e-3 and 3.7e-2 in bfloat16).
        half: Tolerance(rms=4 * _ONCE[half].rms, peak=4 * _ONCE[half].peak)
        for half in (torch.bfloat16, torch.float16)
    },
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
    rowwise=False,
)
