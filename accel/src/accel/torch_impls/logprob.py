"""logprob over torch's own product and log_softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from accel.contracts.logprob import adjusted, chunks, of_logits
from accel.torch_impls.linear import linear


def logprob(
    x: Tensor, ids: Tensor, w: Tensor | None, b: Tensor | None, scale: float,
    softcap: float | None, temperature: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if ids.device != x.device:  # torch 2.13 gathers at ids on meta without a word, garbage
        raise RuntimeError(f"x is on {x.device}, ids on {ids.device}; move one of them")
    wide = torch.promote_types(x.dtype, torch.float32)
    if w is None:
        return of_logits(adjusted(x.to(wide), scale, softcap, temperature), ids)
    w, b = w.to(wide), None if b is None else b.to(wide)  # once, not once a chunk
    rows, at = x.reshape(ids.numel(), x.shape[-1]), ids.reshape(-1)
    found = []
    for chunk in chunks(len(rows), len(w)):
        z = linear(rows[chunk].to(wide), w, b, None, None)
        found.append(of_logits(adjusted(z, scale, softcap, temperature), at[chunk]))
    chosen, entropy = (torch.cat(parts).reshape(ids.shape) for parts in zip(*found))
    return chosen, entropy
