"""Spans: which query of attention sees which key, read on the host or kept in tensors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch._C import _TorchDispatchModeKey as _Mode

BLOCK_SCORES = 1 << 24  # 64 MiB of fp32

# Modes under which a tensor's values are symbols, or must not become constants.
_TRACING = (_Mode.FAKE, _Mode.FUNCTIONAL, _Mode.PROXY)

Span = tuple[int, int, int, int]
Block = tuple[slice, slice, Tensor]  # queries, keys, bool [m, n]: which query sees which key


def ranges(spans: Tensor, m: int, n: int) -> list[Span]:
    """The spans on the host. IndexError for one beyond ``m`` queries or ``n`` keys."""
    rows: list[Span] = [tuple(row) for row in spans.tolist()]
    for i, (q_start, q_len, k_start, k_len) in enumerate(rows):
        if min(rows[i]) < 0 or q_start + q_len > m or k_start + k_len > n:
            raise IndexError(
                f"attention: span {i}, (q_start, q_len, k_start, k_len) = {rows[i]}, is out of "
                f"range of {m} queries and {n} keys"
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


def visible(spans: Tensor, m: int, n: int, causal: bool) -> Tensor:
    """bool [m, n]: which query sees which key, by tensor operations alone."""
    q_start, q_len, k_start, k_len = spans.unbind(1)
    query = torch.arange(m, device=spans.device).unsqueeze(1) - q_start  # of each span, [m, B]
    mine = (query >= 0) & (query < q_len)
    end = k_start + (torch.minimum(query + 1 + k_len - q_len, k_len) if causal else k_len)
    # A query is of one span at most, so the sum picks.
    first = (mine * k_start).sum(1, keepdim=True)
    last = (mine * end).sum(1, keepdim=True)
    key = torch.arange(n, device=spans.device)
    return (key >= first) & (key < last)


def blocks(spans: Tensor, m: int, n: int, heads: int, causal: bool) -> Iterator[Block]:
    """Each span's queries, as many at a time as :data:`BLOCK_SCORES` allows, with the keys that the
    last of them sees: causal, half the work of all keys."""
    for q_start, q_len, k_start, k_len in ranges(spans, m, n):
        step = max(BLOCK_SCORES // max(heads * k_len, 1), 1)
        # Those before see no key.
        first = max(q_len - k_len, 0) if causal else 0
        for start in range(first, q_len if k_len else 0, step):
            stop = min(start + step, q_len)
            seen = k_len - (q_len - stop if causal else 0)
            mask = torch.ones(stop - start, seen, dtype=torch.bool, device=spans.device)
            if causal:
                mask = mask.tril(start + k_len - q_len)
            yield slice(q_start + start, q_start + stop), slice(k_start, k_start + seen), mask
