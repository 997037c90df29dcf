"""grouped_linear: rows sorted by expert, each times its own expert's weight; in fp32, rounded once.

Rows ``ends[e - 1]`` up to ``ends[e]`` are expert e's, ``act(x @ w[e].T + b[e])``; the first
expert's begin at 0, and rows past the last end give 0. An expert may have none.

M: rows · E: experts · K: what is summed over · N: columns of the result
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs, linear
from accel.contracts.contract import BadInput, Contract, Cost, Sample
from accel.contracts.spans import readable
from accel.errors import OpArgumentError
from accel.host import read

NAME = "grouped_linear"


def ranges(ends: Tensor, m: int) -> list[slice]:
    """Each expert's rows, read on the host. IndexError where an end is before the one before it,
    or beyond ``m``."""
    found, start = [], 0
    for e, end in enumerate(read(ends)):
        if not start <= end <= m:
            raise IndexError(
                f"{NAME}: ends must be in order, from 0 to at most the {m} rows there are; found "
                f"{end} for expert {e} after {start}"
            )
        found.append(slice(start, end))
        start = end
    return found


def _members(ends: Tensor, m: int) -> Iterator[Tensor]:
    """For each expert, bool [m, 1]: which rows are its own, by tensor operations alone."""
    row = torch.arange(m, device=ends.device).unsqueeze(1)
    start = torch.zeros((), dtype=ends.dtype, device=ends.device)
    for end in ends.unbind():
        yield (row >= start) & (row < end)
        start = end


def reference(
    x: Tensor,  # [M, K]
    w: Tensor,  # [E, N, K]
    ends: Tensor,  # [E], int64
    b: Tensor | None = None,  # [E, N]
    act: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:  # [M, N]
    if readable(ends):
        ranges(ends, x.shape[0])
    y = x.new_zeros((x.shape[0], w.shape[1]), dtype=out_dtype or x.dtype)
    for e, mine in enumerate(_members(ends, x.shape[0])):
        y = torch.where(mine, linear.reference(x, w[e], _of(b, e), act, out_dtype), y)
    return y


def _of(b: Tensor | None, e: int) -> Tensor | None:
    return None if b is None else b[e]


def check(
    x: Tensor, w: Tensor, ends: Tensor, b: Tensor | None, act: str | None,
    out_dtype: torch.dtype | None,
) -> None:  # fmt: skip
    given = {"x": x, "w": w, "ends": ends, "b": b}
    checks.refuse_nontensor(NAME, given, optional=("b",))
    checks.require_floats(NAME, x, {"w": w, "b": b})
    checks.require_integers(NAME, "ends", ends, like="x", other=x)
    if x.dim() != 2:
        raise OpArgumentError(f"{NAME}: x must be [rows, in]; found {checks.describe(x)}")
    if w.dim() != 3:
        raise OpArgumentError(f"{NAME}: w must be [experts, out, in]; found {checks.describe(w)}")
    if x.shape[1] != w.shape[2]:
        raise OpArgumentError(
            f"{NAME}: x's last dimension must be w's in = {w.shape[2]}; found "
            f"{checks.describe(x)} with w {checks.describe(w)}"
        )
    for name, t, wanted in (("ends", ends, w.shape[:1]), ("b", b, w.shape[:2])):
        if t is not None and t.shape != wanted:
            raise OpArgumentError(
                f"{NAME}: {name} must be {list(wanted)}; found {checks.describe(t)} with w "
                f"{checks.describe(w)}"
            )
    checks.require_act(NAME, act)
    checks.require_out_dtype(NAME, out_dtype)


def fits(x: Tensor, w: Tensor, ends: Tensor, b: Tensor | None) -> bool:
    rows, weight, dtype = x.shape, w.shape, x.dtype
    return (
        len(rows) == 2
        and len(weight) == 3
        and rows[1] == weight[2]
        and w.dtype is dtype
        and ends.dtype is torch.int64
        and ends.shape == weight[:1]
        and (b is None or (b.shape == weight[:2] and b.dtype is dtype))
    )


def fake(
    x: Tensor, w: Tensor, ends: Tensor, b: Tensor | None = None, act: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    return x.new_empty((x.shape[0], w.shape[1]), dtype=out_dtype or x.dtype)


def backward(
    grad: Tensor, needs: tuple[bool, ...], x: Tensor, w: Tensor, ends: Tensor, b: Tensor | None,
    act: str | None, out_dtype: torch.dtype | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """linear's for each expert, of its own rows, or of all with the others' at 0 where the ends
    cannot be read."""
    m, own = x.shape[0], (needs[0], needs[1], needs[3])

    def share(e: int, grad: Tensor, x: Tensor) -> tuple[Any, ...]:
        return linear.backward(grad, own, x, w[e], _of(b, e), act, None)

    if readable(ends):
        rows = ranges(ends, m)
        shares = [share(e, grad[mine], x[mine]) for e, mine in enumerate(rows)]
        dx = _joined(rows, [part[0] for part in shares], x) if needs[0] else None
    else:
        masks = list(_members(ends, m))
        # Not the others' rows times 0, which may hold what is no number.
        shares = [
            share(e, torch.where(mine, grad, 0), torch.where(mine, x, 0))
            for e, mine in enumerate(masks)
        ]
        dx = _chosen(masks, [part[0] for part in shares], x) if needs[0] else None
    dw = _stacked([part[1] for part in shares], w) if needs[1] else None
    db = _stacked([part[2] for part in shares], b) if needs[3] else None
    return dx, dw, None, db, None, None


def _joined(rows: list[slice], parts: list[Tensor], like: Tensor) -> Tensor:
    rest = like.shape[0] - (rows[-1].stop if rows else 0)
    return torch.cat([*parts, like.new_zeros((rest, like.shape[1]))])


def _chosen(masks: list[Tensor], parts: list[Tensor], like: Tensor) -> Tensor:
    chosen = torch.zeros_like(like)
    for mine, part in zip(masks, parts):
        chosen = torch.where(mine, part, chosen)
    return chosen


def _stacked(parts: list[Tensor], like: Any) -> Tensor:
    return torch.stack(parts) if parts else torch.zeros_like(like)


def cost(x: Tensor, w: Tensor, ends: Tensor, *rest: Any) -> Cost:
    """Of the rows that have an expert, and the weights of experts that have rows."""
    (m, k), n = x.shape, w.shape[1]
    counts = [rows.stop - rows.start for rows in ranges(ends, m)]
    moved = m * k + sum(map(bool, counts)) * n * k + m * n
    return Cost(bytes=moved * x.element_size(), flops=2 * sum(counts) * n * k)


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, m: int, k: int, n: int, ends: tuple[int, ...], *, bias: bool = False,
             act: Any = None, out_dtype: Any = None, layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            experts = len(ends)
            # Scaled in place, so that the strides under test survive.
            w = draw.rows(f"{name}.w", (experts, n, k), dtype, device,
                          "plain" if layout == "expanded" else layout)  # fmt: skip
            return (
                draw.rows(f"{name}.x", (m, k), dtype, device, layout),
                w.mul_(max(k, 1) ** -0.5),
                torch.tensor(ends, dtype=torch.int64, device=device),
                draw.plain(f"{name}.b", (experts, n), dtype, device) if bias else None,
                act,
                out_dtype,
            )

        return Sample(name, make)

    yield case("even", 16, 24, 20, (3, 3, 9, 16))
    yield case("odd", 7, 33, 11, (4, 7), bias=True)
    yield case("rows_past_the_end", 9, 16, 12, (2, 6), bias=True, act="gelu")
    yield case("one_expert", 5, 16, 12, (5,), bias=True)
    yield case("no_expert", 5, 16, 12, ())
    yield case("no_rows", 0, 16, 8, (0, 0), bias=True)
    yield case("no_columns", 4, 16, 0, (2, 4))
    yield case("no_sum", 4, 0, 8, (1, 4), bias=True)
    yield case("long_sum", 3, 1501, 5, (1, 3))
    yield case("many_rows", 131, 16, 12, (60, 61, 131))
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", 6, 20, 12, (2, 6), bias=True, layout=layout)
    yield case("out_fp32", 9, 25, 15, (4, 8), act="silu", out_dtype=torch.float32)


def bad_inputs() -> Iterable[BadInput]:
    good = {
        "x": inputs.maker(NAME, "x", (4, 8)),
        "w": inputs.maker(NAME, "w", (2, 5, 8)),
        "ends": lambda dtype, device: torch.tensor([1, 4]).to(device),
        "b": inputs.maker(NAME, "b", (2, 5)),
        **{"act": None, "out_dtype": None},
    }
    yield inputs.spoil(good, "sum_differs", "last dimension", x=lambda x: x[:, :7])
    yield inputs.spoil(good, "batched_x", "x must be", x=lambda x: x[None])
    yield inputs.spoil(good, "weight_rank", "w must be", w=lambda w: w[0])
    yield inputs.spoil(good, "ends_too_few", "ends must be", ends=lambda ends: ends[:1])
    yield inputs.spoil(good, "ends_rank", "ends must be", ends=lambda ends: ends[None])
    yield inputs.spoil(good, "ends_narrow", "ends must be", ends=lambda ends: ends.int())
    yield inputs.spoil(good, "bias_of_one", "b must be", b=lambda b: b[0])
    yield inputs.spoil(good, "dtype_differs", "dtype", w=lambda w: w.double())
    yield inputs.spoil(good, "integers", "must be one of", x=lambda x: x.int())
    yield inputs.spoil(good, "unknown_act", "unknown act", act="relo")
    yield inputs.spoil(good, "integer_out", "out_dtype", out_dtype=torch.int32)
    yield inputs.spoil(good, "other_device", "device", w=lambda w: w.to("meta"))
    yield inputs.spoil(good, "ends_elsewhere", "device", ends=lambda ends: ends.to("meta"))


GROUPED_LINEAR = Contract(
    name=NAME,
    family="LinearBuilder",
    schema="(Tensor x, Tensor w, Tensor ends, Tensor? b=None, str? act=None, "
    "ScalarType? out_dtype=None) -> Tensor",
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
    rowwise=False,
)
