"""An MLP of many experts, of which a router chooses some for each token; no expert is ever full.

Rows are packed, so that padding goes to no expert. Each row has its own choice and its own sum, in
the order of the experts, so that its value does not depend on what else there is.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from accel import ops
from accel.contracts.checks import WIDE
from accel.engine.call import current
from accel.engine.forward import Branch, Forward
from accel.engine.modules.balance import keep
from accel.engine.modules.projection import FEWEST, Stacked
from accel.engine.parallel.share import Share
from accel.engine.sequences import Sequences
from accel.engine.spec import ExpertsSpec, LayerSpec
from accel.layers.hooks import has_hooks


class RoutedMlp(Branch):
    """Router and experts; ``[B, S, H]`` to ``[B, S, H]``, zero where padded."""

    def __init__(self, module: nn.Module, layer: LayerSpec) -> None:
        super().__init__(module, layer.mlp)
        self.spec = _experts(layer)

    def __call__(self, x: Tensor, sequences: Sequences) -> Tensor:
        spec = self.spec
        rows = sequences.pack(x)
        if spec.jitter and self.module.training and current().dropout:
            rows = rows * torch.empty_like(rows).uniform_(1 - spec.jitter, 1 + spec.jitter)
        _, weights, chosen = self._part(spec.router)(rows)
        return sequences.unpack(self._part(spec.experts)(rows, chosen, weights))


class Router(Forward):
    """Of each row its logits ``[T, E]``, and ``[T, top_k]`` of its experts, the lowest first, their
    weights and which they are. All numbers are fp32; of equal logits the lowest expert's counts."""

    def __init__(self, module: nn.Module, layer: LayerSpec) -> None:
        super().__init__(module)
        self.spec = _experts(layer)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        logits = ops.linear(x, weight, out_dtype=WIDE[x.dtype])
        keep(logits)
        best = logits.detach().argsort(dim=-1, descending=True, stable=True)
        chosen = best[:, : self.spec.top_k].sort(dim=-1).values
        if self.spec.normalized:  # to divide probabilities by their sum: softmax of those alone
            return logits, ops.softmax(logits.gather(1, chosen)), chosen
        return logits, ops.softmax(logits).gather(1, chosen), chosen


class Experts(Forward):
    """``sum of weight * down(act(gate(x)) * up(x))`` over each row's experts, the lowest first, in
    fp32; what enters ``down`` and the sum are rounded."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.gate_up = Stacked(module, "gate_up_proj", FEWEST)
        self.down = Stacked(module, "down_proj", FEWEST)

    def __call__(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        module: Any = self.module
        wide = WIDE[x.dtype]
        expert, order = chosen.flatten().sort(stable=True)
        every = torch.arange(len(module.down_proj), device=x.device)
        ends = torch.searchsorted(expert, every, right=True)
        # Copied, then permuted: to gather rows several times has a gradient whose order is any.
        copies = x.unsqueeze(1).expand(-1, chosen.shape[1], -1).flatten(0, 1)
        mine = copies.index_select(0, order)
        share = current().share
        if share is None:
            gate, up = self.gate_up(mine, ends, wide).chunk(2, -1)
            down = self.down((module.act_fn(gate) * up).to(x.dtype), ends, wide)
        else:
            down = self._shared(mine, ends, share)
        found = torch.empty_like(down).index_copy(0, order, down).unflatten(0, chosen.shape)
        total: Tensor = reduce(torch.add, (found * weights[..., None]).unbind(1))
        return total.to(x.dtype)

    def _shared(self, x: Tensor, ends: Tensor, share: Share) -> Tensor:
        """What the experts project down, of which each rank makes some columns."""
        module: Any = self.module
        wide, rank = WIDE[x.dtype], share.ranks.rank
        hidden, width = module.down_proj.shape[1:]
        for_inner, for_down = share.parts(width), share.parts(hidden)
        mine, watched = for_inner[rank], has_hooks(module.act_fn)
        if watched:
            gate, up = self.gate_up(x, ends, wide).chunk(2, -1)
        else:
            other = slice(mine.start + width, mine.stop + width)
            gate, up = (self.gate_up(x, ends, wide, rows=rows) for rows in (mine, other))
        inner = (module.act_fn(gate) * up).to(x.dtype)
        inner = share.ranks.gather(inner[:, mine] if watched else inner, for_inner)
        down = self.down(inner, ends, wide, rows=for_down[rank])
        return share.ranks.gather(down, for_down)


def _experts(layer: LayerSpec) -> ExpertsSpec:
    assert layer.experts is not None
    return layer.experts
