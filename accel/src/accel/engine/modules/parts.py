"""Embedding, norm, rotary angles and head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from accel import ops
from accel.contracts.checks import WIDE
from accel.contracts.vocabulary import Adjustment
from accel.engine.call import current
from accel.engine.forward import Forward, installed
from accel.engine.modules.projection import OF_THE_HEAD, Linear
from accel.engine.spec import DecoderSpec, Rotary, StackSpec

_NORMS: dict[str, Callable[..., Tensor]] = {"rms_norm": ops.rms_norm, "layer_norm": ops.layer_norm}


class Angles:
    """cos and sin, for heads: no tuple, in which a MixedPrecisionPolicy of ``fully_shard`` would
    find and cast them where a layer is given them."""

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        self.cos = cos
        self.sin = sin


_LOGITS_AT_ONCE = 1 << 22


class Embedding(Forward):
    """Rows of a table from its row ``first`` on, multiplied by ``scale`` in their dtype. As in
    torch the row of ``padding_idx`` gets no gradient."""

    def __init__(self, module: nn.Module, first: int = 0, scale: float = 1.0) -> None:
        super().__init__(module)
        self.first = first
        self.scale = scale

    def __call__(self, ids: Tensor) -> Tensor:
        ids = ids + self.first if self.first else ids
        rows = ops.embedding(ids, self.module.weight)  # type: ignore[arg-type]
        padding: int | None = self.module.padding_idx  # type: ignore[assignment]
        if padding is not None and rows.requires_grad:
            rows = torch.where(ids.eq(padding)[..., None], rows.detach(), rows)
        return multiplied(rows, self.scale)


class Norm(Forward):
    """RMSNorm or LayerNorm over the last dimension, in fp32, rounded once."""

    def __init__(self, module: nn.Module, spec: StackSpec) -> None:
        super().__init__(module)
        self.kind = spec.norm
        self.eps = spec.norm_eps
        self.offset = spec.norm_offset

    def __call__(self, x: Tensor) -> Tensor:
        op, weight = _NORMS[self.kind], self.module.weight
        if self.offset:  # a sum that x's dtype may not hold
            wide = WIDE[x.dtype]
            return op(x.to(wide), weight.to(wide) + self.offset, eps=self.eps).to(x.dtype)  # type: ignore[operator]
        given = [weight]
        if self.kind == "layer_norm":
            given.append(self.module.bias)
        return op(x, *given, eps=self.eps)


def multiplied(x: Tensor, factor: float) -> Tensor:
    """``x`` times a factor that is rounded to its dtype first; ``x`` itself if that is 1."""
    return x if factor == 1 else x * torch.tensor(factor, dtype=x.dtype)


def angles(
    positions: Tensor, frequencies: Tensor, scaling: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, ``[..., D/2]``, for heads of ``dtype``.

    As in transformers the product is fp32; unlike there it is never rounded to 16 bits.
    """
    with torch.no_grad():
        found = positions[..., None].float() * frequencies.float()
        wide = WIDE[dtype]
        return (found.cos() * scaling).to(wide), (found.sin() * scaling).to(wide)


class RotaryAngles(Forward):
    """:func:`angles` by the module's own frequencies."""

    def __call__(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        module: Any = self.module
        return angles(position_ids, module.inv_freq, module.attention_scaling, x.dtype)


def angles_without_module(x: Tensor, positions: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
    """:func:`angles` by the frequencies that ``rotary`` says."""
    steps = torch.arange(0, rotary.width, 2, dtype=torch.int64, device=x.device).float()
    return angles(positions, 1.0 / rotary.base ** (steps / rotary.width), 1.0, x.dtype)


class Head(Linear):
    """The projection to the vocabulary in fp32, never rounded to 16 bits; or, given ids, their
    (log-probability, entropy) without it."""

    def __init__(self, module: nn.Module, spec: DecoderSpec) -> None:
        super().__init__(module, least_bits=OF_THE_HEAD)
        self.adjustment: dict[str, Any] = {
            "scale": spec.logit_scale, "softcap": spec.logit_softcap,
        }  # fmt: skip

    def __call__(  # type: ignore[override]
        self, h: Tensor, ids: Tensor | None = None, temperature: float = 1.0,
        rows: slice | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        if ids is None:
            return super().__call__(h, out_dtype=WIDE[h.dtype], rows=rows)
        if current().quantized is not None:
            return self._by_logits(h, ids, temperature)
        return ops.logprob(
            h, ids, self.weight, self.bias, temperature=temperature, **self.adjustment
        )

    def _by_logits(self, h: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Of a copy there are logits first: those of some rows after the others, never all."""
        rows = max(_LOGITS_AT_ONCE // len(self.weight), 1)
        parts = [
            self.values(super(Head, self).__call__(some, out_dtype=WIDE[h.dtype]), own, temperature)
            for some, own in zip(h.split(rows), ids.split(rows))
        ]
        values, entropies = map(torch.cat, zip(*parts))
        return values, entropies

    def logits(self, projected: Tensor) -> Tensor:
        """What the model calls logits: scaled and capped."""
        return Adjustment(temperature=1.0, **self.adjustment)(projected)

    def values(
        self, projected: Tensor, ids: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """(log-probability, entropy) of ids, to the bits they have without the projection."""
        return ops.logprob(projected, ids, temperature=temperature, **self.adjustment)


def head_of(module: nn.Module) -> Head:
    """The forward that stands in the head's place."""
    found = installed(module)
    assert isinstance(found, Head)
    return found
