"""Spans that stay tensors, as under a trace: all queries and all keys are one part of attention."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.contracts.random import kept
from accel.contracts.spans import first_rows, visible_from


class Whole:
    """All queries and all keys, as one sequence (b = 1), by tensor operations alone."""

    def __init__(self, spans: Tensor, m: int, n: int, causal: bool, window: int | None) -> None:
        q_start, q_len, k_start, k_len = spans.unbind(1)
        query = torch.arange(m, device=spans.device).unsqueeze(1) - q_start  # of each span, [m, B]
        mine = (query >= 0) & (query < q_len)

        def own(of_span: Tensor) -> Tensor:
            # A query is of one span at most, so the sum picks.
            return (mine * of_span).sum(1, keepdim=True)

        length = own(k_len)
        self.sequence = own(torch.arange(len(spans), device=spans.device))  # [m, 1]
        self.query = own(query)
        self.key = torch.arange(n, device=spans.device) - own(k_start)  # [m, n]
        at = self.query + length - own(q_len)
        self.distance = self.key - at
        within = (self.key >= 0) & (self.key < length)
        seen = visible_from(self.key, at, causal, window)
        self.visible = within if seen is None else within & seen

    def rows(self, t: Tensor) -> Tensor:
        return t.transpose(0, 1).unsqueeze(0)

    def keys(self, t: Tensor) -> Tensor:
        # 0 where no query looks: a NaN in a cache's free slots times a probability of 0 is NaN.
        seen = t.masked_fill(~self.visible.any(0)[:, None, None], 0)
        return seen.transpose(0, 1).unsqueeze(0)

    def values(self, mask: Tensor) -> Tensor:
        if not mask.numel():  # no query sees a key
            return mask.new_zeros(1, 1, *self.key.shape)
        return mask.permute(0, 2, 3, 1)[self._places(mask)].permute(2, 0, 1).unsqueeze(0)

    def kept(self, seed: Tensor, heads: int, p: float) -> Tensor:
        rows = (first_rows(self.sequence, heads) + self.query).t()  # [H, m]
        columns = self.key.shape[1]
        bits = kept(seed, rows, columns, p)
        at = self.key.clamp(0, max(columns - 1, 0)).expand(bits.shape)
        return bits.gather(-1, at).unsqueeze(0)

    def add_rows(self, total: Tensor, found: Tensor) -> Tensor:
        return total + found.squeeze(0).transpose(0, 1)

    def add_keys(self, total: Tensor, found: Tensor) -> Tensor:
        return total + found.squeeze(0).transpose(0, 1)

    def add_values(self, total: Tensor, found: Tensor) -> Tensor:
        if not total.numel():
            return total
        by_head = found.squeeze(0).sum_to_size(total.shape[1], *self.key.shape).permute(1, 2, 0)
        places = self._places(total)
        whole = total.permute(0, 2, 3, 1).index_put(places, by_head, accumulate=True)
        return whole.permute(0, 3, 1, 2)

    def _places(self, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where in a mask [B|1, Q|1, K] each pair's value is; anywhere, where nothing is seen."""
        last = [size - 1 for size in mask.shape]
        return (
            self.sequence.clamp(max=last[0]),
            self.query.clamp(max=last[2]),
            self.key.clamp(0, last[3]),
        )
