"""logprob: log-probability of given ids and entropy, of logits or of hidden rows and the head.

What a sampler records and a trainer compares with. From hidden rows the logits, [rows, V], are
accumulated in fp32, never rounded and never held all at once; from logits of the same values come
the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs, linear, vocabulary
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance, rounded_once
from accel.contracts.vocabulary import Adjustment
from accel.errors import OpArgumentError

NAME = "logprob"


def of_logits(z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(logprob, entropy) of ``z`` [..., V] at ``ids`` [...]. Entropy is summed from
    log-probabilities: the same as logsumexp(z) - Σ p z, less its cancellation where z is large."""
    logs = torch.log_softmax(z, -1)
    chosen = logs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return chosen, _entropy(logs)


def _entropy(logs: Tensor) -> Tensor:
    return -(logs.exp() * vocabulary.finite(logs)).sum(-1)


def reference(
    x: Tensor,  # [..., H] with w, [..., V] without
    ids: Tensor,  # [...], int64
    w: Tensor | None = None,  # [V, H]
    b: Tensor | None = None,  # [V]
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:  # [...], [...] in fp32, or fp64 of fp64
    wide = checks.WIDE[x.dtype]
    z = x.to(wide) if w is None else linear.reference(x, w, b, None, wide)
    return of_logits(Adjustment(scale, softcap, temperature)(z), ids)


def check(
    x: Tensor, ids: Tensor, w: Tensor | None, b: Tensor | None, scale: float,
    softcap: float | None, temperature: float,
) -> None:  # fmt: skip
    given = {"x": x, "ids": ids, "w": w, "b": b}
    checks.refuse_nontensor(NAME, given, optional=("w", "b"))
    checks.require_floats(NAME, x, {"w": w, "b": b})
    checks.require_rows(NAME, x)
    checks.require_integers(NAME, "ids", ids, like="x", other=x)
    if ids.shape != x.shape[:-1]:
        raise OpArgumentError(
            f"{NAME}: ids must be {list(x.shape[:-1])}, one for each row of x; found "
            f"{checks.describe(ids)} beside {checks.describe(x)}"
        )
    if w is not None:
        checks.require_weight(NAME, "w", w, x)
        checks.require_bias(NAME, "b", b, w.shape[0])
    elif b is not None:
        raise OpArgumentError(
            f"{NAME}: b must be None without w, since x is the logits then; found "
            f"{checks.describe(b)}"
        )
    checks.require_number(NAME, "scale", scale)
    divisors = {"temperature": temperature} | ({} if softcap is None else {"softcap": softcap})
    for name, divisor in divisors.items():
        checks.require_number(NAME, name, divisor)
        if not divisor > 0:
            raise OpArgumentError(f"{NAME}: {name} must be more than 0; found {divisor}")


def fits(x: Tensor, ids: Tensor, w: Tensor | None, b: Tensor | None) -> bool:
    rows = x.shape
    if not rows or ids.dtype is not torch.int64 or ids.shape != rows[:-1]:
        return False
    return b is None if w is None else linear.fits(x, w, b)


def fake(
    x: Tensor, ids: Tensor, w: Tensor | None = None, b: Tensor | None = None, scale: float = 1.0,
    softcap: float | None = None, temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    wide = checks.WIDE[x.dtype]
    return x.new_empty(ids.shape, dtype=wide), x.new_empty(ids.shape, dtype=wide)


def backward(
    grad: tuple[Tensor | None, Tensor | None], needs: tuple[bool, ...], x: Tensor, ids: Tensor,
    w: Tensor | None, b: Tensor | None, scale: float, softcap: float | None, temperature: float,
    *, results: tuple[Tensor, Tensor],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """With w the logits are computed again, a tile at a time, rather than kept; each tile of w gets
    its gradient in one product per block of rows."""
    wide = checks.WIDE[x.dtype]
    # Counted, since -1 cannot be inferred beside a dimension of 0.
    m = math.prod(x.shape[:-1])
    flat, at = x.reshape(m, x.shape[-1]), ids.reshape(m)
    grads = [None if g is None else g.to(wide).reshape(m, 1) for g in grad]
    if not any(g is not None for g in grads):
        return (None,) * 7
    adjust = Adjustment(scale, softcap, temperature)
    if w is None:
        dx = _logits_gradient(grads, flat.to(wide), at, adjust, results[1]) if needs[0] else None
        return dx if dx is None else dx.to(x.dtype).reshape(x.shape), *(None,) * 6

    # Made of a gradient, these are batched under vmap wherever something is.
    like = next(g for g in grads if g is not None)
    dx = like.new_zeros(flat.shape) if needs[0] else None
    dw = like.new_zeros(w.shape) if needs[2] else None
    db = like.new_zeros(w.shape[:1]) if needs[3] else None
    chosen, entropy = (result.reshape(m, 1) for result in results)
    for rows in vocabulary.blocks(m):
        sums = None if dx is None else dx[rows], dw, db
        outer = [None if g is None else g[rows] for g in grads]
        _head_gradient(sums, outer, flat[rows], at[rows], w, b, adjust, chosen[rows], entropy[rows])
    dx = None if dx is None else dx.to(x.dtype).reshape(x.shape)
    dw, db = (None if sum is None else sum.to(x.dtype) for sum in (dw, db))
    return dx, None, dw, db, None, None, None


def _logits_gradient(
    grads: list[Tensor | None], z: Tensor, ids: Tensor, adjust: Adjustment, entropy: Tensor
) -> Tensor:
    adjusted = adjust(z)
    logs = torch.log_softmax(adjusted, -1)
    whole = slice(0, z.shape[-1])
    dz = vocabulary.through_softmax(logs, ids, whole, entropy.reshape(-1, 1), grads)
    return adjust.backward(dz, adjusted)


def _head_gradient(
    sums: tuple[Tensor | None, ...], grads: list[Tensor | None], x: Tensor, ids: Tensor, w: Tensor,
    b: Tensor | None, adjust: Adjustment, chosen: Tensor, entropy: Tensor,
) -> None:  # fmt: skip
    """Add a block of rows to the wide sums of x's, w's and b's gradients."""
    dx, dw, db = sums
    x_wide = x.to(chosen.dtype)
    own = (x_wide * w[ids]).sum(-1, keepdim=True)
    own = own if b is None else own + b[ids].unsqueeze(-1)
    norm = adjust(own) - chosen  # log of the sum of exponentials
    for columns in vocabulary.tiles(len(x), len(w)):
        tile = w[columns]
        adjusted = adjust(linear.reference(x_wide, tile.to(x_wide.dtype), _wide(b, columns)))
        dz = vocabulary.through_softmax(adjusted - norm, ids, columns, entropy, grads)
        dz = adjust.backward(dz, adjusted)
        share = dz.to(x.dtype)
        if dx is not None:
            _add_product(dx, share, tile)
        if dw is not None:
            _add_product(dw[columns], share.t(), x)
        if db is not None:
            db[columns] += dz.sum(0)


def _wide(b: Tensor | None, columns: slice) -> Tensor | None:
    return None if b is None else b[columns].to(checks.WIDE[b.dtype])


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype is total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def cost(x: Tensor, ids: Tensor, w: Tensor | None = None, *rest: Any) -> Cost:
    m = ids.numel()
    v = x.shape[-1] if w is None else w.shape[0]
    read = (x.numel() + (0 if w is None else w.numel())) * x.element_size()
    results = 2 * m * checks.WIDE[x.dtype].itemsize
    product = 0 if w is None else 2 * x.numel() * v
    # Of each logit: less the maximum, exponential, sum, and product with itself, summed.
    return Cost(bytes=read + m * ids.element_size() + results, flops=product + 5 * m * v)


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], v: int | None = None, *, bias: bool = False,
             scale: float = 1.0, softcap: float | None = None, temperature: float = 1.0,
             mean: float = 0.0, filtered: bool = False, layout: str = "plain",
             ) -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            x = draw.rows(f"{name}.x", shape, dtype, device, layout)
            if mean:
                x = x + mean
            if filtered:
                x = x.masked_fill(draw.integers(f"{name}.out", shape, 3, device) == 0, -math.inf)
            weight = None if v is None else (v, shape[-1])
            return (
                x,
                draw.integers(f"{name}.ids", shape[:-1], max(v or shape[-1], 1), device),
                draw.weight(f"{name}.w", weight, dtype, device, layout) if weight else None,
                draw.plain(f"{name}.b", weight[:1], dtype, device) if weight and bias else None,
                scale,
                softcap,
                temperature,
            )

        return Sample(name, make)

    yield case("even", (16, 64), 32, bias=True)
    yield case("odd", (7, 100), 33, bias=True)
    yield case("vector", (65,), 17)
    yield case("batched", (2, 3, 5, 31), 9)
    yield case("one", (1, 1), 1, bias=True)
    yield case("no_rows", (0, 16), 8, bias=True)
    yield case("no_sum", (4, 0), 8, bias=True)
    yield case("long_sum", (5, 2051), 13)
    yield case("many_ids", (5, 24), 2051, bias=True)
    yield case("many_rows", (257, 48), 20)
    yield case("adjusted", (9, 50), 30, bias=True, scale=3.0, softcap=2.0, temperature=0.7)
    yield case("cold", (9, 50), 30, temperature=0.25)
    yield case("logits", (16, 64))
    yield case("logits_odd", (7, 101), temperature=1.5)
    yield case("logits_vector", (65,))
    yield case("logits_batched", (2, 3, 5, 31), scale=0.5)
    yield case("logits_one", (1, 1))
    yield case("logits_no_rows", (0, 16))
    yield case("logits_many", (3, 4099))
    yield case("logits_adjusted", (9, 50), scale=3.0, softcap=2.0, temperature=0.7)
    yield case("logits_off_centre", (9, 50), mean=100.0)  # over what fp32's exponential can hold
    yield case("logits_far_below", (9, 50), mean=-200.0)  # where each exponential of fp32 is 0
    yield case("logits_filtered", (16, 50), filtered=True)
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 40), 24, bias=True, layout=layout)
        yield case(f"logits_{layout}", (6, 40), layout=layout)


def bad_inputs() -> Iterable[BadInput]:
    good = {
        "x": inputs.maker(NAME, "x", (3, 8)),
        "ids": lambda dtype, device: inputs.Draw(NAME).integers("ids", (3,), 5, device),
        "w": inputs.maker(NAME, "w", (5, 8)),
        "b": inputs.maker(NAME, "b", (5,)),
        **{"scale": 1.0, "softcap": None, "temperature": 1.0},
    }
    yield inputs.spoil(good, "sum_differs", "last dimension", x=lambda x: x[:, :7])
    yield inputs.spoil(good, "weight_rank", "w must be", w=lambda w: w[0])
    yield inputs.spoil(good, "bias_shape", "b must be", b=lambda b: b[:1])
    yield inputs.spoil(good, "bias_without_weight", "without w", w=None)
    yield inputs.spoil(good, "scalar_x", "at least one dimension", x=lambda x: x[0, 0])
    yield inputs.spoil(good, "ids_too_few", "ids must be", ids=lambda ids: ids[:2])
    yield inputs.spoil(good, "ids_of_columns", "ids must be", ids=lambda ids: ids[:, None])
    yield inputs.spoil(good, "ids_narrow", "ids must be", ids=lambda ids: ids.int())
    yield inputs.spoil(good, "ids_floating", "ids must be", ids=lambda ids: ids.float())
    yield inputs.spoil(good, "dtype_differs", "dtype", w=lambda w: w.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int())
    yield inputs.spoil(good, "temperature_zero", "temperature", temperature=0.0)
    yield inputs.spoil(good, "softcap_zero", "softcap", softcap=0.0)
    yield inputs.spoil(good, "ids_elsewhere", "device", ids=lambda ids: ids.to("meta"))
    yield inputs.spoil(good, "other_device", "device", w=lambda w: w.to("meta"))


LOGPROB = Contract(
    name=NAME,
    family="TilingBuilder",
    schema="(Tensor x, Tensor ids, Tensor? w=None, Tensor? b=None, float scale=1.0, "
    "float? softcap=None, float temperature=1.0) -> (Tensor, Tensor)",
    options=(),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="input",
    reference_invariant=False,
    tolerance=rounded_once(Tolerance(rms=1e-6, peak=1e-5)),
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
    rowwise=False,
    keeps_results=True,
)
