"""embedding: the rows of ``w`` that ``ids`` name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks, inputs
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance, rounded_once
from accel.errors import OpArgumentError

NAME = "embedding"
ID_DTYPES = (torch.int64, torch.int32)


def reference(ids: Tensor, w: Tensor) -> Tensor:  # [...], [V, H] -> [..., H]
    # index_select, unlike w[ids], does not take a negative id for one counted from the end.
    return w.index_select(0, ids.reshape(-1)).reshape(*ids.shape, w.shape[1])


def check(ids: Tensor, w: Tensor) -> None:
    checks.refuse_nontensor(NAME, {"ids": ids, "w": w}, optional=())
    checks.require_floats(NAME, w, {}, key="w")
    checks.require_integers(NAME, "ids", ids, like="w", other=w, dtypes=ID_DTYPES)
    if w.dim() != 2:
        raise OpArgumentError(f"{NAME}: w must be [V, H]; found {checks.describe(w)}")


def fits(ids: Tensor, w: Tensor) -> bool:
    return ids.dtype in ID_DTYPES and len(w.shape) == 2


def fake(ids: Tensor, w: Tensor) -> Tensor:
    return w.new_empty((*ids.shape, w.shape[1]))


def backward(
    grad: Tensor, needs: tuple[bool, ...], ids: Tensor, w: Tensor
) -> tuple[Tensor | None, ...]:
    """An id that comes often is a long sum: in fp32, rounded once."""
    if not needs[1]:
        return None, None
    wide = checks.WIDE[w.dtype]
    # Counted, since -1 cannot be inferred beside a dimension of 0.
    rows = grad.reshape(ids.numel(), w.shape[1]).to(wide)
    dw = torch.ops.aten.embedding_dense_backward(rows, ids.reshape(-1), w.shape[0], -1, False)
    return None, dw.to(w.dtype)


def cost(ids: Tensor, w: Tensor) -> Cost:
    rows = 2 * ids.numel() * w.shape[1] * w.element_size()
    return Cost(bytes=rows + ids.numel() * ids.element_size(), flops=0)


def samples() -> Iterable[Sample]:
    draw = inputs.Draw(NAME)

    def case(name: str, shape: tuple[int, ...], table: tuple[int, int], *,
             ids_dtype: torch.dtype = torch.int64, layout: str = "plain") -> Sample:  # fmt: skip
        def make(dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
            ids = draw.integers(f"{name}.ids", shape, table[0], device).to(ids_dtype)
            if layout == "transposed":
                ids = ids.t().contiguous().t()
            elif layout == "sliced":
                ids = ids.repeat_interleave(2, -1)[..., ::2]
            elif layout == "expanded":
                ids = ids[:1].expand(shape)
            return ids, draw.rows(f"{name}.w", table, dtype, device, layout)

        return Sample(name, make)

    yield case("even", (16,), (64, 32))
    yield case("odd", (7,), (101, 33))
    yield case("batched", (2, 3, 5), (13, 9))
    yield case("int32", (3, 4), (50, 17), ids_dtype=torch.int32)
    yield case("scalar", (), (5, 8))
    yield case("one", (1,), (1, 1))
    yield case("no_rows", (0,), (10, 16))
    yield case("no_vocabulary", (2, 0), (0, 16))
    yield case("no_columns", (4,), (10, 0))
    yield case("repeated", (400,), (3, 21))
    yield case("many_rows", (257,), (1031, 48))
    for layout in inputs.LAYOUTS:
        yield case(f"layout_{layout}", (6, 5), (40, 24), layout=layout)


def bad_inputs() -> Iterable[BadInput]:
    def ids(dtype: torch.dtype, device: torch.device) -> Tensor:
        return inputs.Draw(NAME).integers("ids", (3,), 5, device)

    good = {"ids": ids, "w": inputs.maker(NAME, "w", (5, 8))}
    yield inputs.spoil(good, "float_ids", "ids must be", ids=lambda ids: ids.float())
    yield inputs.spoil(good, "short_ids", "ids must be", ids=lambda ids: ids.short())
    yield inputs.spoil(good, "bool_ids", "ids must be", ids=lambda ids: ids > 0)
    yield inputs.spoil(good, "weight_rank", "w must be", w=lambda w: w[0])
    yield inputs.spoil(good, "integers", "must be one of", w=lambda w: w.int())
    yield inputs.spoil(good, "other_device", "device", ids=lambda ids: ids.to("meta"))


EMBEDDING = Contract(
    name=NAME,
    family="TransformerBuilder",
    schema="(Tensor ids, Tensor w) -> Tensor",
    options=(),
    check=check,
    fits=fits,
    fake=fake,
    reference=reference,
    backward=backward,
    autocast="keep",
    reference_invariant=True,
    # The forward is a copy; these bound the gradient's sums.
    tolerance=rounded_once(Tolerance(rms=3e-7, peak=4e-6)),
    samples=samples,
    bad_inputs=bad_inputs,
    cost=cost,
    keyed_by="w",
    unread=("w",),
)
