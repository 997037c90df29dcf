"""attention and its gradient: from tensors to launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.contracts.attention import scale_of
from accel.contracts.spans import ranges
from accel.errors import OpArgumentError
from accel.host import in_host_memory
from accel.triton_kernels import attention_backward as back
from accel.triton_kernels import attention_forward as forth
from accel.triton_kernels import launching
from accel.triton_kernels.elementwise import least_of, survivor_of
from accel.triton_kernels.limits import HEAD_BYTES, largest_head
from accel.triton_kernels.rows import ALIGNED, Gradients, aligned, launch, power_of_two
from accel.triton_kernels.tuning import Tuning

ROWS = 16  # of a tile, whatever there is: see product.py
SPLIT = 256  # keys
FARTHEST = 1 << 30  # of a window: places of keys are int32, and this is added to them
WARPS = 4  # the sum of a row's weights goes over them, so no tuning
PROGRAMS = 512  # below so many a GPU has nothing to do: splits go to programs of their own
ROOM = 1 << 26  # bytes for what these leave


@dataclass(frozen=True)
class _Call:
    """The arguments of a call as kernels take them."""

    q: Tensor
    k: Tensor
    v: Tensor
    spans: Tensor
    mask: Tensor | None
    slopes: Tensor | None
    seed: Tensor | None
    causal: bool
    scale: float
    window: int | None
    softcap: float | None
    dropout: float

    @classmethod
    def of(
        cls, q: Tensor, k: Tensor, v: Tensor, spans: Tensor, mask: Tensor | None,
        slopes: Tensor | None, seed: Tensor | None, causal: bool, scale: float | None,
        window: int | None, softcap: float | None, dropout: float,
    ) -> _Call:  # fmt: skip
        launching.require_one_device(q, k, v, spans, mask, slopes, seed)
        if max(q.shape[2], v.shape[2]) > largest_head(q.dtype):  # of who did not ask reasons()
            raise OpArgumentError(
                f"attention: heads may have {largest_head(q.dtype)} elements with these kernels; "
                f"found {q.shape[2]} of queries and {v.shape[2]} of values; use "
                f'accel.ops.use("attention=torch")'
            )
        if in_host_memory(spans):  # elsewhere to read them is to wait: kernels make NaN of such
            ranges(spans, q.shape[0], k.shape[0], mask)
        q, k, v = (_alike(t) for t in (q, k, v))
        if mask is not None and mask.stride(3) != 1:
            mask = mask.contiguous()
        return cls(
            q, k, v, spans.contiguous(), mask, None if slopes is None else aligned(slopes),
            seed if dropout > 0 else None, causal, scale_of(q, scale), window, softcap, dropout,
        )  # fmt: skip

    @property
    def group(self) -> int:
        return self.q.shape[1] // self.k.shape[1]

    def sizes(self) -> tuple[int, ...]:
        """m, n, count, heads, group, d_size, e_size"""
        (m, heads, d), (n, _, e) = self.q.shape, self.v.shape
        return m, n, len(self.spans), heads, self.group, d, e

    def limits(self) -> tuple[int, int]:
        """most_queries and most_keys: what the mask has."""
        (m, *_), (n, *_), mask = self.q.shape, self.k.shape, self.mask
        if mask is None:
            return m, n
        return (m if mask.shape[2] == 1 else mask.shape[2]), mask.shape[3]

    def strides(self) -> tuple[int, ...]:
        """Of q, k and v by row and head, and of the mask by span, head and query."""
        rows = (s for t in (self.q, self.k, self.v) for s in t.stride()[:2])
        mask = self.mask
        if mask is None:
            return *rows, 0, 0, 0
        return *rows, *(0 if size == 1 else s for size, s in zip(mask.shape[:3], mask.stride()))

    def numbers(self) -> tuple[float, ...]:
        """scale, softcap, window, least, survivor"""
        p = self.dropout
        window = min(self.window or 0, FARTHEST)
        return self.scale, self.softcap or 0.0, window, least_of(p), survivor_of(p)

    def constants(self) -> dict[str, Any]:
        d, e = (max(power_of_two(size), 16) for size in (self.q.shape[2], self.v.shape[2]))
        return {
            "CAUSAL": self.causal, "WINDOW": self.window is not None,
            "CAPPED": self.softcap is not None, "DEPTH": d, "WIDTH": e,
            "KEYS": _keys(max(d, e), self.q.dtype), "SPANS": max(power_of_two(len(self.spans)), 16),
        }  # fmt: skip

    def hides(self) -> bool:
        """Whether rows of a tile may see some of a block of keys and others not. Of a lone query
        the last key is its own, and what follows is not read; as many spans as queries say less,
        since some may be empty, and to read them is to wait."""
        several = self.q.shape[0] > 1
        return self.mask is not None or self.window is not None or (self.causal and several)

    def tiles(self, rows: int) -> int:
        """How many there are at most: two spans may share a tile's rows."""
        return self.q.shape[0] * self.group // rows + len(self.spans)


def _alike(t: Tensor) -> Tensor:
    """``t`` [rows, heads, size], copied unless its strides and address tell the compiler what those
    of a contiguous one do.

    With a mask the order of a row's sum follows from how keys and values are read (Triton 3.9,
    sm_90): calls that must agree must be one program, as in :mod:`accel.triton_kernels.rows`.
    """
    plain = (t.shape[1] * t.shape[2], t.shape[2], 1)
    known = all(
        (mine == 1, mine % ALIGNED == 0) == (own == 1, own % ALIGNED == 0)
        for mine, own in zip(t.stride(), plain)
    )
    if known and t.stride(2) == 1 and t.data_ptr() % ALIGNED == 0:
        return t
    return t.clone(memory_format=torch.contiguous_format)


def _keys(size: int, dtype: torch.dtype) -> int:
    """Of a block, as many as leave room for others on their way: part of the definition of a row's
    sums."""
    return min(max((1 << 14) // (size * dtype.itemsize), 16), 64)


def _rows(constants: dict[str, Any], dtype: torch.dtype) -> int:
    """Of a tile of the gradient: half as many where heads are so large that they would not fit."""
    size = max(constants["DEPTH"], constants["WIDTH"]) * dtype.itemsize
    return back.ROWS if size <= HEAD_BYTES // 2 else back.ROWS // 2


def attention(tuning: Tuning, *args: Any) -> Tensor:
    return _attended(_Call.of(*args), None)


def forward(
    tuning: Tuning, *args: Any
) -> tuple[Tensor, tuple[Tensor, ...], Callable[..., Gradients] | None]:
    """With what the gradient is made of, a number for each query and head beside the result; the
    gradients of a mask and of slopes are the contract's."""
    if any(t is not None and t.requires_grad for t in args[4:6]):
        return attention(tuning, *args), (), None
    call = _Call.of(*args)
    log_sums = call.q.new_empty(call.q.shape[:2], dtype=torch.float32)
    y = _attended(call, log_sums)
    return y, (y, log_sums), _backward


def _attended(call: _Call, log_sums: Tensor | None) -> Tensor:
    m, n, count, heads, group, _, e = call.sizes()
    y = call.q.new_zeros(m, heads, e)  # what is in no span
    if not (y.numel() and count):
        return y
    scale, softcap, window, least, survivor = call.numbers()
    constants = {**call.constants(), "ROWS": ROWS, "SPLIT": SPLIT}
    grid = (call.tiles(ROWS), heads // group)
    splits = -(-n // SPLIT)
    lanes = _lanes(grid, splits, constants["WIDTH"])
    tops = totals = parts = None
    if lanes > 1:
        places = (*grid, splits, ROWS)
        tops, totals = (y.new_empty(places, dtype=torch.float32) for _ in range(2))
        parts = y.new_empty((*places, constants["WIDTH"]), dtype=torch.float32)
    tensors = (
        call.q, call.k, call.v, call.spans, call.mask, call.slopes, call.seed, y, log_sums,
    )  # fmt: skip
    numbers = (
        *call.sizes(), splits, *call.limits(), *call.strides(), scale, softcap, window, least,
        survivor,
    )  # fmt: skip
    launch(
        forth.attend, (*grid, lanes), WARPS, *tensors, tops, totals, parts, *numbers, MEND=False,
        **constants,
    )  # fmt: skip
    if lanes > 1:
        taken = ("CAUSAL", "WINDOW", "WIDTH", "ROWS", "SPLIT", "SPANS")
        launch(
            forth.merge, grid, WARPS,
            call.spans, y, log_sums, tops, totals, parts, m, n, count, heads, group, e, splits,
            *call.limits(), window, survivor, **{name: constants[name] for name in taken},
        )  # fmt: skip
    if call.hides():
        launch(
            forth.attend, (*grid, 1), WARPS, *tensors, None, None, None, *numbers, MEND=True,
            **constants,
        )  # fmt: skip
    return y


def _lanes(grid: tuple[int, int], splits: int, width: int) -> int:
    """To how many programs the splits of a tile go; 1 for that of the tile."""
    tiles = grid[0] * grid[1]
    fits = tiles * splits * ROWS * (width + 2) * 4 <= ROOM
    return min(splits, max(PROGRAMS // tiles, 1)) if fits else 1


def _backward(grad: Tensor, needs: Sequence[bool], *args: Any, kept: Sequence[Tensor]) -> Gradients:
    """Probabilities again, of the log of a row's sum, a block of rows and keys at a time."""
    call = _Call.of(*args)
    y, log_sums = kept
    none: Gradients = (None,) * (len(args) - 3)
    m, n, count, heads, group, _, e = call.sizes()
    dq, dk, dv = (
        t.new_zeros(t.shape) if need else None for t, need in zip((call.q, call.k, call.v), needs)
    )
    if not (y.numel() and count and n):
        return dq, dk, dv, *none
    grad = aligned(grad)
    deltas = torch.empty_like(log_sums)
    rows = _rows(constants := call.constants(), call.q.dtype)
    constants["ROWS"] = rows
    launch(back.deltas, (m, heads), 1, grad, y, deltas, heads, e, WIDTH=constants["WIDTH"])
    scale, softcap, window, least, survivor = call.numbers()
    rest = (
        call.q, call.k, call.v, call.spans, call.mask, call.slopes, call.seed, grad, log_sums,
        deltas,
    )  # fmt: skip
    numbers = (
        *call.sizes(), *call.limits(), *call.strides(), scale, softcap, window, least, survivor,
    )  # fmt: skip
    if dq is not None:
        grid = (call.tiles(rows), heads // group)
        launch(back.of_queries, grid, WARPS, *rest, dq, *numbers, **constants)
    if dk is not None or dv is not None:
        grid = (-(-n // constants["KEYS"]), heads // group)
        launch(back.of_keys, grid, WARPS, *rest, dk, dv, *numbers, **constants)
    return dq, dk, dv, *none
