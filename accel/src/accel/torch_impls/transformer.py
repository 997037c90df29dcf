"""rotary and embedding over torch's own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from accel.contracts.rotary import join, split


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    r, wide = cos.shape[-1], x.to(cos.dtype)
    a, b = split(wide, r, interleaved)
    c, s = cos.unsqueeze(-2), sin.unsqueeze(-2)
    first, second = (a * c).sub_(b * s), (b * c).add_(a * s)
    return join(first, second, wide[..., 2 * r :], interleaved).to(x.dtype)


def embedding(ids: Tensor, w: Tensor) -> Tensor:
    # torch 2.13 looks meta ids up in a real table without a word.
    if ids.device != w.device:
        raise RuntimeError(f"ids are on {ids.device}, w is on {w.device}; move one of them")
    return F.embedding(ids, w)
