"""One decoder layer for every architecture a DecoderSpec can describe."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel import ops
from accel.engine.call import Call, current
from accel.engine.forward import Forward
from accel.engine.modules.parts import Angles
from accel.engine.modules.projection import activated, gated
from accel.engine.sequences import Sequences
from accel.engine.spec import DecoderSpec


class DecoderLayer(Forward):
    """``h + attention(norm(h))``, then ``h + mlp(norm(h))``; ``[B, S, H]`` to ``[B, S, H]``."""

    def __init__(self, module: nn.Module, spec: DecoderSpec) -> None:
        super().__init__(module)
        self.spec = spec.layer

    def __call__(
        self, h: Tensor, angles: Angles | None, sequences: Sequences, call: Call
    ) -> Tensor:
        if self._recomputes():
            module: Any = self.module
            return module._gradient_checkpointing_func(  # type: ignore[no-any-return]
                self._layer, h, angles, sequences, call
            )
        return self._layer(h, angles, sequences, call)

    def _layer(self, h: Tensor, angles: Angles | None, sequences: Sequences, call: Call) -> Tensor:
        part, spec = self.module.get_submodule, self.spec
        with call.active(h.device):
            h = h + part(spec.attention)(part(spec.attention_norm)(h), angles, sequences)[0]
            return h + part(spec.mlp)(part(spec.mlp_norm)(h))  # type: ignore[no-any-return]

    def _recomputes(self) -> bool:
        """True if gradient checkpointing is on: layers of transformers do it in their class's
        ``forward``, whose place this takes. Without gradients there is nothing to recompute."""
        module = self.module
        asked = module.training and getattr(module, "gradient_checkpointing", False)
        return asked and torch.is_grad_enabled()


class _Branch(Forward):
    """Attention or MLP: a module of the layer whose parts are named from the layer on."""

    def __init__(self, module: nn.Module, path: str) -> None:
        super().__init__(module)
        self.prefix = path + "."

    def _part(self, path: str) -> nn.Module:
        return self.module.get_submodule(path.removeprefix(self.prefix))

    def _dropped(self, x: Tensor, path: str | None) -> Tensor:
        if path is None or not current().dropout:
            return x
        return self._part(path)(x)  # type: ignore[no-any-return]


class Attention(_Branch):
    """Projections, rotary positions, KV cache, attention, and the projection back.

    Returns the result and None, as attention modules of transformers do where they keep no
    probabilities.
    """

    def __init__(self, module: nn.Module, spec: DecoderSpec, index: int) -> None:
        super().__init__(module, spec.layer.attention)
        self.spec = spec
        self.index = index

    def __call__(
        self, x: Tensor, angles: Angles | None, sequences: Sequences
    ) -> tuple[Tensor, None]:
        q, k, v = self._projected(x)
        if angles is not None:
            q, k = ops.rotary(q, *angles), ops.rotary(k, *angles)
        q, k, v = map(sequences.pack, (q, k, v))
        cache = current().cache
        if cache is not None:
            assert sequences.slots is not None
            k, v = cache.extend(self.index, sequences.slots, k, v)
        attended = sequences.unpack(self._attended(q, k, v, sequences.spans))
        out = self._part(self.spec.layer.out)(attended.flatten(-2))
        return self._dropped(out, self.spec.layer.attention_dropout), None

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q ``[B, S, heads, D]``, k and v ``[B, S, kv_heads, D]``."""
        spec = self.spec
        found = [self._part(path)(x) for path in spec.layer.qkv]
        if len(found) == 1:
            sizes = [n * spec.head_dim for n in (spec.heads, spec.kv_heads, spec.kv_heads)]
            found = list(found[0].split(sizes, dim=-1))
        q, k, v = (t.unflatten(-1, (-1, spec.head_dim)) for t in found)
        return q, k, v

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, spans: Tensor) -> Tensor:
        scale, dropout = self.spec.scales[self.index], self.spec.probability_dropout
        if dropout and self.module.training and current().dropout:
            return attention_with_dropout(q, k, v, spans, scale, dropout)
        return ops.attention(q, k, v, spans, scale=scale)


class Mlp(_Branch):
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))``."""

    def __init__(self, module: nn.Module, spec: DecoderSpec) -> None:
        super().__init__(module, spec.layer.mlp)
        self.spec = spec.layer

    def __call__(self, x: Tensor) -> Tensor:
        spec = self.spec
        up, act = self._part(spec.up), self._part(spec.act)
        inner = (
            activated(x, up, act) if spec.gate is None
            else gated(x, self._part(spec.gate), up, act)
        )  # fmt: skip
        return self._dropped(self._part(spec.down)(inner), spec.mlp_dropout)


def attention_with_dropout(
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, scale: float, p: float
) -> Tensor:
    """:func:`accel.ops.attention` of sequences that attend to themselves, with dropout on the
    probabilities: for a training step that asks for it, sequence by sequence."""
    found = [q.new_empty((0, q.shape[1], v.shape[2]))]
    for start, length, _, _ in spans.tolist():
        rows = slice(start, start + length)
        query, key, value = (t[None, rows].transpose(1, 2) for t in (q, k, v))
        attended = F.scaled_dot_product_attention(
            query, key, value, dropout_p=p, is_causal=True, scale=scale, enable_gqa=True
        )
        found.append(attended.transpose(1, 2)[0])
    return torch.cat(found)
