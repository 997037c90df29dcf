"""The gradient of logprob: of logits in one pass, of hidden rows a tile of logits at a time.

Log-probabilities follow from that of the id, which is kept: nothing is summed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.contracts import vocabulary
from accel.contracts.vocabulary import Adjustment
from accel_cpu.gradients import slow_in_torch

Gradients = tuple[Tensor | None, ...]
Grads = Sequence[Tensor | None]


def logprob(
    run: Callable[..., tuple[Tensor, Tensor]], *args: Any
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...], Callable[..., Gradients]]:
    """The forward, and its results as what the gradient is made of."""
    results = run(*args)
    return results, results, _backward


def _backward(
    grads: Grads, needs: Sequence[bool], x: Tensor, ids: Tensor, w: Tensor | None,
    b: Tensor | None, scale: float, softcap: float | None, temperature: float, *,
    kept: Sequence[Tensor],
) -> Gradients:  # fmt: skip
    if grads[0] is None and grads[1] is None:
        return (None,) * 7
    adjust = Adjustment(scale, softcap, temperature)
    if w is None:
        dx = _of_logits(adjust, x, ids, None, (*kept, *grads), x.dtype)[0] if needs[0] else None
        return dx, *(None,) * 6

    m = math.prod(x.shape[:-1])
    given = [None if t is None else t.reshape(m) for t in (*kept, *grads)]
    head = _Head(adjust, x.reshape(m, x.shape[-1]), ids.reshape(m), w, b, given)
    dx, dw, db = head.gradients((needs[0], needs[2], needs[3]))
    return None if dx is None else dx.view(x.shape), None, dw, db, None, None, None


def _of_logits(
    adjust: Adjustment, z: Tensor, ids: Tensor, anchors: Tensor | None, given: Grads,
    dtype: torch.dtype, sums: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradient of ``z`` in a dtype, and with ``sums`` its sum over the rows."""
    return torch.ops.accel_cpu_kernels.logprob_gradients(  # type: ignore[no-any-return]
        z, ids, anchors, *given, adjust.scale, adjust.softcap, adjust.temperature, dtype, sums
    )


@dataclass(frozen=True)
class _Head:
    """Hidden rows ``[M, H]``, the head, and of each row what is ``given``: logprob and entropy, and
    their gradients. The logits are computed again, a tile at a time, rather than kept."""

    adjust: Adjustment
    x: Tensor
    ids: Tensor
    w: Tensor
    b: Tensor | None
    given: Grads

    def gradients(self, needs: Sequence[bool]) -> Iterator[Tensor | None]:
        """Of x, w and b, summed in fp32."""
        totals = [
            t.new_zeros(t.shape, dtype=torch.float32) if t is not None and need else None
            for t, need in zip((self.x, self.w, self.b), needs)
        ]
        for rows in vocabulary.blocks(len(self.x)):
            self._add_block(rows, *totals)
        return (None if total is None else total.to(self.x.dtype) for total in totals)

    def _add_block(
        self, rows: slice, dx: Tensor | None, dw: Tensor | None, db: Tensor | None
    ) -> None:
        x, ids, dtype = self.x[rows], self.ids[rows], self.x.dtype
        given = [None if t is None else t[rows] for t in self.given]
        own = (x.float() * self.w[ids]).sum(-1)
        anchors = self.adjust(own if self.b is None else own + self.b[ids])
        for columns in vocabulary.tiles(len(x), len(self.w)):
            w, places = self.w[columns], ids - columns.start
            z = self._logits(x, w, columns)
            dz, sums = _of_logits(self.adjust, z, places, anchors, given, dtype, db is not None)
            if dx is not None:
                _add_product(dx[rows], dz, w)
            if dw is not None:
                _add_product(dw[columns], dz.t(), x)
            if db is not None:
                db[columns] += sums

    def _logits(self, x: Tensor, w: Tensor, columns: slice) -> Tensor:
        b = None if self.b is None else self.b[columns]
        return torch.ops.accel_cpu_kernels.linear_native(x, w, b, None, torch.float32)  # type: ignore[no-any-return]


# Terms of a sum below which the products in fp32 serve half precisions: of one term, 1024 x 256 in
# bf16, this backend's own takes 0.23 ms, fp32's with the copies 0.06; of 64, 0.46 and 0.37 (a Zen 3
# core).
_FEW_TERMS = 32


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add ``a b`` to an fp32 total."""
    in_fp32 = a.dtype is total.dtype and a.dtype not in slow_in_torch()
    if in_fp32 or a.shape[1] < _FEW_TERMS:
        total.addmm_(a.float(), b.float())
    else:
        torch.ops.accel_cpu_kernels.tiled_linear_native_into(a, b.t(), None, total, total)
