"""rotary and embedding over torch's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.contracts.rotary import split


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    r = cos.shape[-1]
    a, b = (half.to(cos.dtype) for half in split(x, r, interleaved))
    first, second = split(y, r, interleaved)
    c, s = cos.unsqueeze(-2), sin.unsqueeze(-2)
    first.copy_(a * c - b * s)
    second.copy_(b * c + a * s)
    y[..., 2 * r :] = x[..., 2 * r :]
    return y


def embedding(ids: Tensor, w: Tensor) -> Tensor:
    # torch 2.13 looks meta ids up in a real table without a word.
    if ids.device != w.device:
        raise RuntimeError(f"ids are on {ids.device}, w is on {w.device}; move one of them")
    return F.embedding(ids, w)
