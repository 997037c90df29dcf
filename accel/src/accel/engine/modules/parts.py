"""Embedding, norm, rotary angles and head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from accel import ops
from accel.contracts.checks import WIDE
from accel.engine.forward import Forward
from accel.engine.modules.projection import Linear

_NORMS: dict[str, Callable[..., Tensor]] = {"rms_norm": ops.rms_norm, "layer_norm": ops.layer_norm}

Angles = tuple[Tensor, Tensor]


class Embedding(Forward):
    """Rows of a table. As in torch, the row of ``padding_idx`` gets no gradient."""

    def __call__(self, ids: Tensor) -> Tensor:
        rows = ops.embedding(ids, self.module.weight)  # type: ignore[arg-type]
        padding: int | None = self.module.padding_idx  # type: ignore[assignment]
        if padding is None or not rows.requires_grad:
            return rows
        return torch.where(ids.eq(padding)[..., None], rows.detach(), rows)


class Norm(Forward):
    """RMSNorm or LayerNorm over the last dimension, in fp32, rounded once."""

    def __init__(self, module: nn.Module, kind: str, eps: float) -> None:
        super().__init__(module)
        self.kind = kind
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        given = [self.module.weight]
        if self.kind == "layer_norm":
            given.append(self.module.bias)
        return _NORMS[self.kind](x, *given, eps=self.eps)


class RotaryAngles(Forward):
    """cos and sin of position times frequency, ``[..., D/2]``.

    As in transformers the product is fp32; unlike there it is never rounded to 16 bits.
    """

    def __call__(self, x: Tensor, position_ids: Tensor) -> Angles:
        module: Any = self.module
        with torch.no_grad():
            angles = position_ids[..., None].float() * module.inv_freq.float()
            scaling = module.attention_scaling
            cos, sin = angles.cos() * scaling, angles.sin() * scaling
            return cos.to(WIDE[x.dtype]), sin.to(WIDE[x.dtype])


class Head(Linear):
    """Logits in fp32, never rounded to 16 bits; or, given ids, their (log-probability, entropy)
    without the logits."""

    def __call__(  # type: ignore[override]
        self, h: Tensor, ids: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor | tuple[Tensor, Tensor]:
        if ids is None:
            return ops.linear(h, self.weight, self.bias, out_dtype=WIDE[h.dtype])
        return ops.logprob(h, ids, self.weight, self.bias, temperature=temperature)
