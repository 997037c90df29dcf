"""Spans: which query of attention sees which key.

A part is some of a call's queries and the keys that they see, as tensors with heads first: b
sequences of m queries and n keys each. Where spans can be read, a :class:`Block` holds sequences of
one length that lie one after another, as views; where not, :mod:`accel.contracts.spans_unread` has
all queries and all keys as one part.

Query i of a span stands at its key i + k_len - q_len; a key's distance is counted from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor
from torch._C import _TorchDispatchModeKey as _Mode

from accel.contracts.random import kept
from accel.host import read

BLOCK_SCORES = 1 << 24  # 64 MiB of fp32

# Modes under which a tensor's values are symbols, or must not become constants.
_TRACING = (_Mode.FAKE, _Mode.FUNCTIONAL, _Mode.PROXY)

Span = tuple[int, int, int, int]


def ranges(spans: Tensor, m: int, n: int, mask: Tensor | None = None) -> list[Span]:
    """The spans on the host. IndexError for one beyond ``m`` queries, ``n`` keys or the mask."""
    rows: list[Span] = [tuple(row) for row in read(spans)]
    for i, (q_start, q_len, k_start, k_len) in enumerate(rows):
        if min(rows[i]) < 0 or q_start + q_len > m or k_start + k_len > n:
            raise IndexError(
                f"attention: span {i}, (q_start, q_len, k_start, k_len) = {rows[i]}, is out of "
                f"range of {m} queries and {n} keys"
            )
        if mask is not None and (k_len > mask.shape[3] or q_len > mask.shape[2] != 1):
            raise IndexError(
                f"attention: span {i} has {q_len} queries and {k_len} keys; the mask "
                f"{list(mask.shape)} is for {mask.shape[2]} and {mask.shape[3]}"
            )
    return rows


def readable(spans: Tensor) -> bool:
    """Whether the spans' values can be had: they are nowhere near a trace or a transform."""
    return (
        not torch.compiler.is_compiling()
        and type(spans) is Tensor
        and not spans.is_meta
        and not torch._C._are_functorch_transforms_active()
        and all(torch._C._get_dispatch_mode(mode) is None for mode in _TRACING)
    )


class Part(Protocol):
    """Some queries and the keys they see. What is added to totals is returned with them."""

    @property
    def distance(self) -> Tensor:
        """int64 [m, n]: each key's from where the query stands; 0 its own, below 0 before it."""

    @property
    def visible(self) -> Tensor | None:
        """bool [m, n]: which query sees which key; None for all."""

    def rows(self, t: Tensor) -> Tensor:
        """Of [M, H, x] what belongs to these queries, [b, H, m, x]."""

    def keys(self, t: Tensor) -> Tensor:
        """Of [N, G, x] what belongs to these keys, [b, G, n, x]."""

    def values(self, mask: Tensor) -> Tensor:
        """Of a mask [B|1, H|1, Q|1, K] its values here, [b|1, H|1, m|1, n]."""

    def kept(self, seed: Tensor, heads: int, p: float) -> Tensor:
        """bool [b, H, m, n]: which probabilities dropout leaves."""

    def add_rows(self, total: Tensor, found: Tensor) -> Tensor: ...

    def add_keys(self, total: Tensor, found: Tensor) -> Tensor: ...

    def add_values(self, total: Tensor, found: Tensor) -> Tensor: ...


def visible_from(key: Tensor, at: Tensor, causal: bool, window: int | None) -> Tensor | None:
    """Which keys are seen from where queries stand; None for all."""
    if window is None:
        return key <= at if causal else None
    return (key > at - window) & ((key <= at) if causal else (key < at + window))


def first_rows(sequence: Tensor, heads: int) -> Tensor:
    """The number, for random bits, of each sequence's and head's first row: [.., 1] as [.., H]."""
    return (sequence * heads + torch.arange(heads, device=sequence.device)) << 32


@dataclass(frozen=True)
class Block:
    """Queries [start, stop) of each of ``count`` spans, and the keys that any of them sees.

    The spans have one length and lie one after another; number, q_start and k_start are the first
    one's.
    """

    number: int
    count: int
    q_start: int
    q_len: int
    k_start: int
    k_len: int
    start: int
    stop: int
    causal: bool
    window: int | None
    device: torch.device

    @property
    def shift(self) -> int:
        return self.k_len - self.q_len

    @property
    def seen(self) -> slice:
        """The keys of a span, from the first seen to the last."""
        first, last = 0, self.k_len
        if self.window is not None:
            first = max(self.start + self.shift - self.window + 1, 0)
            last = min(self.stop - 1 + self.shift + self.window, self.k_len)
        return slice(first, self.stop + self.shift if self.causal else last)

    @cached_property
    def at(self) -> Tensor:
        """[m, 1], the keys where the queries stand."""
        query = torch.arange(self.start, self.stop, device=self.device)
        return query.unsqueeze(1) + self.shift

    @cached_property
    def key(self) -> Tensor:
        return torch.arange(self.seen.start, self.seen.stop, device=self.device)

    @property
    def distance(self) -> Tensor:
        return self.key - self.at

    @cached_property
    def visible(self) -> Tensor | None:
        return visible_from(self.key, self.at, self.causal, self.window)

    def rows(self, t: Tensor) -> Tensor:
        whole = t[self.q_start : self.q_start + self.count * self.q_len]
        each: Tensor = whole.unflatten(0, (self.count, self.q_len))
        return each[:, self.start : self.stop].transpose(1, 2)

    def keys(self, t: Tensor) -> Tensor:
        whole = t[self.k_start : self.k_start + self.count * self.k_len]
        each: Tensor = whole.unflatten(0, (self.count, self.k_len))
        return each[:, self.seen].transpose(1, 2)

    def values(self, mask: Tensor) -> Tensor:
        if mask.shape[0] > 1:
            mask = mask[self.number : self.number + self.count]
        if mask.shape[2] > 1:
            mask = mask[:, :, self.start : self.stop]
        return mask[..., self.seen]

    def kept(self, seed: Tensor, heads: int, p: float) -> Tensor:
        query = torch.arange(self.start, self.stop, device=self.device)
        sequence = torch.arange(self.number, self.number + self.count, device=self.device)
        rows = first_rows(sequence.unsqueeze(1), heads).unsqueeze(2) + query
        return kept(seed, rows, self.seen.stop, p)[..., self.seen]

    def add_rows(self, total: Tensor, found: Tensor) -> Tensor:
        self.rows(total).add_(found)
        return total

    def add_keys(self, total: Tensor, found: Tensor) -> Tensor:
        self.keys(total).add_(found)
        return total

    def add_values(self, total: Tensor, found: Tensor) -> Tensor:
        mine = self.values(total)
        mine.add_(found.sum_to_size(mine.shape))
        return total


def runs(
    spans: Tensor, m: int, n: int, causal: bool, window: int | None = None,
    mask: Tensor | None = None,
) -> Iterator[Block]:  # fmt: skip
    """Blocks of as many spans as have one length and lie one after another; without the queries at
    a span's beginning that see no key, and without spans of none that does."""
    run: Block | None = None
    for number, (q_start, q_len, k_start, k_len) in enumerate(ranges(spans, m, n, mask)):
        if run is not None:
            follows = (run.q_start + run.count * q_len, run.k_start + run.count * k_len)
            if (q_len, k_len, q_start, k_start) == (run.q_len, run.k_len, *follows):
                run = replace(run, count=run.count + 1)
                continue
            yield run
        blind = q_len - k_len - (0 if causal else (window or q_len) - 1)
        start = max(blind, 0) if k_len else q_len
        run = None
        if start < q_len:
            run = Block(
                number, 1, q_start, q_len, k_start, k_len, start, q_len, causal, window,
                spans.device,
            )  # fmt: skip
    if run is not None:
        yield run


def blocks(
    spans: Tensor, m: int, n: int, heads: int, causal: bool, window: int | None = None,
    mask: Tensor | None = None,
) -> Iterator[Block]:  # fmt: skip
    """:func:`runs`, as many spans at a time, or of one as many queries, as
    :data:`BLOCK_SCORES` allows, with the keys that the last of them sees: causal, half the work of
    all keys."""
    for run in runs(spans, m, n, causal, window, mask):
        together = max(BLOCK_SCORES // max(heads * run.q_len * run.k_len, 1), 1)
        step = max(BLOCK_SCORES // max(heads * run.k_len, 1), 1)
        for at in range(0, run.count, together):
            part = replace(
                run, number=run.number + at, count=min(together, run.count - at),
                q_start=run.q_start + at * run.q_len, k_start=run.k_start + at * run.k_len,
            )  # fmt: skip
            for start in range(run.start, run.stop, step):
                yield replace(part, start=start, stop=min(start + step, run.stop))
