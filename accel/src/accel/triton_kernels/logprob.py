"""logprob and its gradient: of hidden rows by the logits that ``linear`` has of them, in fp32, a
tile at a time, which then go the way of all logits. Hence the same bits of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from accel.contracts.vocabulary import TILE_BYTES
from accel.contracts.vocabulary import blocks as blocks_of
from accel.triton_kernels import launching, logprob_rows
from accel.triton_kernels.linear import linear
from accel.triton_kernels.rows import Gradients, launch, parts_of, power_of_two, rows_of
from accel.triton_kernels.tuning import Tuning

BLOCK = 2048  # of the vocabulary, a segment: part of the definition of a row's sums
WARPS = 8


@dataclass(frozen=True)
class _Adjustment:
    """``softcap·tanh(z·scale / softcap) / temperature``"""

    scale: float
    softcap: float | None
    temperature: float

    @property
    def numbers(self) -> tuple[float, float, float]:
        # Who calls may have said 2: a whole number would be one in the kernel too.
        return float(self.scale), float(self.softcap or 0), float(self.temperature)

    @property
    def constants(self) -> dict[str, Any]:
        return {"CAPPED": self.softcap is not None, "BLOCK": BLOCK}


def logprob(tuning: Tuning, *args: Any) -> tuple[Tensor, Tensor]:
    chosen, entropy, _ = _run(tuning, *args)
    return chosen, entropy


def forward(
    tuning: Tuning, *args: Any
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...], Callable[..., Gradients]]:
    """With what the gradient is made of: the entropy, and the log of a row's sum."""
    chosen, entropy, log_sum = _run(tuning, *args)
    return (chosen, entropy), (entropy, log_sum), partial(_backward, tuning)


def _run(
    tuning: Tuning, x: Tensor, ids: Tensor, w: Tensor | None, b: Tensor | None, scale: float,
    softcap: float | None, temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    launching.require_one_device(x, ids, w, b)
    adjust = _Adjustment(scale, softcap, temperature)
    chosen, entropy, log_sum = (x.new_empty(ids.shape, dtype=torch.float32) for _ in range(3))
    found = chosen, entropy, log_sum
    if not ids.numel():
        return found
    flat = [t.view(-1) for t in found]
    rows, at = rows_of(x), ids.reshape(-1).contiguous()
    if w is None:
        state = _State.of(rows, rows.shape[1])
        state.fold(adjust, rows, at, 0)
        state.merge(at, flat)
        return found
    for some in blocks_of(len(rows)):
        state = _State.of(rows[some], len(w))
        for columns in _tiles(len(rows[some]), len(w)):
            z = _logits(tuning, rows[some], w, b, columns)
            state.fold(adjust, z, at[some], columns.start)
        state.merge(at[some], [t[some] for t in flat])
    return found


@dataclass(frozen=True)
class _State:
    """What rows have of each segment of ``width`` logits."""

    width: int
    tensors: tuple[Tensor, ...]  # tops, totals, moments, chosens, [M, segments] in fp32

    @classmethod
    def of(cls, rows: Tensor, width: int) -> _State:
        shape = (len(rows), max(triton.cdiv(width, BLOCK), 1))
        return cls(width, tuple(rows.new_empty(shape, dtype=torch.float32) for _ in range(4)))

    def fold(self, adjust: _Adjustment, z: Tensor, ids: Tensor, first: int) -> None:
        """Those of logits ``z``, of which the first is ``first`` of the vocabulary."""
        rows, columns = z.shape
        launch(
            logprob_rows.fold, (rows, max(triton.cdiv(columns, BLOCK), 1)), WARPS,
            z, ids, *self.tensors, columns, first, self.tensors[0].shape[1], *adjust.numbers,
            **adjust.constants,
        )  # fmt: skip

    def merge(self, ids: Tensor, found: Sequence[Tensor]) -> None:
        segments = self.tensors[0].shape[1]
        launch(
            logprob_rows.merge, (len(ids),), 1, ids, *self.tensors, *found, self.width, segments,
            BLOCK=BLOCK, SEGMENTS=power_of_two(segments),
        )  # fmt: skip


def _tiles(rows: int, width: int) -> Iterator[slice]:
    """Slices of whole segments of the vocabulary, whose fp32 logits of ``rows`` fill
    :data:`TILE_BYTES`, or one segment; one for no vocabulary."""
    step = max(TILE_BYTES // (4 * rows) // BLOCK, 1) * BLOCK
    for start in range(0, max(width, 1), step):
        yield slice(start, min(start + step, width))


def _logits(tuning: Tuning, x: Tensor, w: Tensor, b: Tensor | None, columns: slice) -> Tensor:
    bias = None if b is None else b[columns]
    return linear(tuning, x, w[columns], bias, None, torch.float32)


def _backward(
    tuning: Tuning, grads: Sequence[Tensor | None], needs: Sequence[bool], x: Tensor, ids: Tensor,
    w: Tensor | None, b: Tensor | None, scale: float, softcap: float | None, temperature: float,
    *, kept: Sequence[Tensor],
) -> Gradients:  # fmt: skip
    """Of a head the logits are computed again, a tile at a time, rather than kept."""
    if (grads[0] is None and grads[1] is None) or not ids.numel():
        return NotImplemented
    adjust = _Adjustment(scale, softcap, temperature)
    given = [None if t is None else t.reshape(-1).contiguous() for t in (*kept, *grads)]
    rows, at = rows_of(x), ids.reshape(-1).contiguous()
    if w is None:
        dz, _ = _spread(adjust, rows, at, given, 0, x.dtype, sums=False)
        return dz.view(x.shape) if needs[0] else None, *(None,) * 6
    dx, dw, db = (
        t.new_zeros(t.shape, dtype=torch.float32) if t is not None and need else None
        for t, need in ((rows, needs[0]), (w, needs[2]), (b, needs[3]))
    )
    for some in blocks_of(len(rows)):
        own = [None if t is None else t[some] for t in given]
        for columns in _tiles(some.stop - some.start, len(w)):
            z = _logits(tuning, rows[some], w, b, columns)
            dz, sums = _spread(
                adjust, z, at[some], own, columns.start, x.dtype, sums=db is not None
            )
            if dx is not None:
                _add_product(dx[some], dz, w[columns])
            if dw is not None:
                _add_product(dw[columns], dz.t(), rows[some])
            if db is not None and sums is not None:
                db[columns] += sums
    dx, dw, db = (None if t is None else t.to(x.dtype) for t in (dx, dw, db))
    return None if dx is None else dx.view(x.shape), None, dw, db, None, None, None


def _spread(
    adjust: _Adjustment, z: Tensor, ids: Tensor, given: Sequence[Tensor | None], first: int,
    dtype: torch.dtype, *, sums: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The gradient of ``z`` in a dtype, and its sum over the rows in fp32."""
    (rows, columns), dz = z.shape, z.new_empty(z.shape, dtype=dtype)
    parts, each = parts_of(rows)
    total = z.new_empty(parts, columns, dtype=torch.float32) if sums else None
    launch(
        logprob_rows.spread, (parts, triton.cdiv(columns, BLOCK)), WARPS,
        z, ids, *given, dz, total, rows, each, columns, first, *adjust.numbers,
        **adjust.constants,
    )  # fmt: skip
    return dz, None if total is None else total.sum(0)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a @ b`` to an fp32 total: by torch, as a gradient need not be that of a row alone."""
    if a.dtype is total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
