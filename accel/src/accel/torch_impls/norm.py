"""rms_norm, layer_norm and add_norm over torch's own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from accel.contracts.add_norm import require_kind


def rms_norm(x: Tensor, w: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], w, eps)


def layer_norm(x: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w, b, eps)


def add_norm(
    x: Tensor, residual: Tensor, w: Tensor | None, b: Tensor | None, kind: str, eps: float
) -> tuple[Tensor, Tensor]:
    require_kind(kind, b)
    total = x + residual
    normed = layer_norm(total, w, b, eps) if kind == "layer" else rms_norm(total, w, eps)
    return normed, total
