"""logprob over torch's own product, a tile of the vocabulary at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from accel.contracts.checks import WIDE
from accel.contracts.logprob import of_logits
from accel.contracts.vocabulary import Adjustment, blocks, one_tile, placed, tiles
from accel.torch_impls.linear import linear


def logprob(
    x: Tensor, ids: Tensor, w: Tensor | None, b: Tensor | None, scale: float,
    softcap: float | None, temperature: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if ids.device != x.device:  # torch 2.13 gathers at ids on meta without a word, garbage
        raise RuntimeError(f"x is on {x.device}, ids on {ids.device}; move one of them")
    wide = WIDE[x.dtype]
    adjust = Adjustment(scale, softcap, temperature)
    if w is None:
        return of_logits(adjust(x.to(wide)), ids)
    if one_tile(ids.numel(), len(w)):
        return of_logits(adjust(linear(x, w, b, None, wide)), ids)
    rows, at = x.reshape(ids.numel(), x.shape[-1]), ids.reshape(-1)
    _require_known(at, len(w))
    b = None if b is None else b.to(wide)
    found = [_of_block(rows[block].to(wide), at[block], w, b, adjust) for block in blocks(len(at))]
    chosen, entropy = (torch.cat(parts).reshape(ids.shape) for parts in zip(*found))
    return chosen, entropy


def _of_block(
    x: Tensor, ids: Tensor, w: Tensor, b: Tensor | None, adjust: Adjustment
) -> tuple[Tensor, Tensor]:
    """Sums of e^d and -d e^d over the tiles, d being a logit less the largest so far: both have
    addends of one sign, so that nothing cancels."""
    column = x.new_zeros(len(x), 1)
    top, chosen, total, moment = column - math.inf, column, column, column
    for columns in tiles(len(x), len(w)):
        bias = None if b is None else b[columns]
        z = adjust(linear(x, w[columns].to(x.dtype), bias, None, None))
        at, inside = placed(ids, columns)
        chosen = z.gather(-1, at).where(inside, chosen)
        higher = torch.maximum(top, z.amax(-1, keepdim=True))
        base = higher.masked_fill(higher == -math.inf, 0)
        down = base - top
        shrink = torch.exp(-down)
        d = z - base
        p = d.exp()
        # Sums so far are moved to the new largest; of nothing they are 0, and 0 times inf is NaN.
        moved = down.masked_fill(total == 0, 0)
        moment = (moment + moved * total) * shrink - (p * d.masked_fill(p == 0, 0)).sum(
            -1, keepdim=True
        )
        total = total * shrink + p.sum(-1, keepdim=True)
        top = higher
    log_total = total.log()
    logprob = chosen - top - log_total
    return logprob.squeeze(-1), (log_total + moment / total).squeeze(-1)


def _require_known(ids: Tensor, count: int) -> None:
    """torch's own error for an id out of range."""
    ids.new_zeros(1, 1).expand(len(ids), count).gather(-1, ids.unsqueeze(-1))
