"""One layer for every architecture a StackSpec can describe."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accel import ops
from accel.contracts.checks import WIDE
from accel.engine.call import Call, current
from accel.engine.forward import Branch, Forward
from accel.engine.modules.parts import Angles, multiplied
from accel.engine.modules.projection import activated, gated, width
from accel.engine.modules.shared import back
from accel.engine.parallel.share import Heads
from accel.engine.sequences import Sequences
from accel.engine.spec import StackSpec
from accel.layers.hooks import has_hooks
from accel.ops.watching import torch_is_watched


class DecoderLayer(Forward):
    """Attention and MLP as the spec joins them; ``[B, S, H]`` to ``[B, S, H]``."""

    def __init__(self, module: nn.Module, spec: StackSpec, index: int) -> None:
        super().__init__(module)
        self.spec = spec.layer
        self.has_experts = spec.layer.has_experts(index)
        # Where the MLP is no module, its parts are this one's.
        self.own_mlp = Mlp(module, spec) if spec.layer.mlp is None else None

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
        spec = self.spec

        def attention(x: Tensor) -> Tensor:
            y = self._dropped(
                self._part(spec.attention)(x, angles, sequences)[0], spec.attention_dropout
            )
            return multiplied(self._normed(spec.attention_out_norm, y), spec.scale)

        def mlp(x: Tensor) -> Tensor:
            own: Any = self.own_mlp if spec.mlp is None else self._part(spec.mlp)
            y = own(x, sequences) if self.has_experts else own(x)
            y = self._dropped(y, spec.mlp_dropout)
            return multiplied(self._normed(spec.mlp_out_norm, y), spec.scale)

        with call.active(h.device):
            if spec.parallel:
                x = self._normed(spec.attention_norm, h)
                y = self._normed(spec.mlp_norm, h) if spec.mlp_norm else x
                return h + self._thinned(attention(x) + mlp(y))
            h = self._added(h, attention, spec.attention_norm)
            return self._added(h, mlp, spec.mlp_norm)

    def _added(self, h: Tensor, branch: Callable[[Tensor], Tensor], norm: str | None) -> Tensor:
        if self.spec.norms_sums:
            return self._normed(norm, h + self._thinned(branch(h)))
        x = self._normed(norm, h)
        return (x if self.spec.adds_to_normed else h) + self._thinned(branch(x))

    def _normed(self, norm: str | None, x: Tensor) -> Tensor:
        return x if norm is None else self._part(norm)(x)

    def _dropped(self, x: Tensor, path: str | None) -> Tensor:
        return x if path is None or not current().dropout else self._part(path)(x)

    def _thinned(self, x: Tensor) -> Tensor:
        """By the dropout of layers that have no module for it."""
        drops = self.spec.dropout and self.module.training and current().dropout
        return F.dropout(x, self.spec.dropout) if drops else x

    def _part(self, path: str) -> nn.Module:
        return self.module.get_submodule(path)

    def _recomputes(self) -> bool:
        """True if gradient checkpointing is on: layers of transformers do it in their class's
        ``forward``, whose place this takes. Without gradients there is nothing to recompute."""
        module = self.module
        asked = module.training and getattr(module, "gradient_checkpointing", False)
        return asked and torch.is_grad_enabled()


@lru_cache(maxsize=64)
def _falls(slopes: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Slopes on a device. Kept, since a graph cannot record a copy from the host."""
    with torch.inference_mode(False):  # so that a training step may use them too
        return torch.tensor(slopes, dtype=dtype, device=device)


class Attention(Branch):
    """Projections, their norms, rotary positions, KV cache, attention, and the projection back.

    Returns the result and None, as attention modules of transformers do where they keep no
    probabilities.
    """

    def __init__(self, module: nn.Module, spec: StackSpec, index: int) -> None:
        super().__init__(module, spec.layer.attention)
        self.spec = spec
        self.index = index

    def __call__(
        self, x: Tensor, angles: Angles | None, sequences: Sequences
    ) -> tuple[Tensor, None]:
        share = current().share
        q, k, v = self._projected(x) if share is None else self._own(x, share.mine)
        if angles is not None:
            pairs, cos, sin = self.spec.interleaved, angles.cos, angles.sin
            q, k = (ops.rotary(t, cos, sin, interleaved=pairs) for t in (q, k))
        q, k, v = map(sequences.pack, (q, k, v))
        cache = current().cache
        if cache is not None:
            assert sequences.slots is not None
            k, v = cache.extend(self.index, sequences.slots, k, v)
        slopes = self.spec.slopes if share is None else share.own.slopes
        attended = sequences.unpack(self._attended(q, k, v, sequences.spans, slopes)).flatten(-2)
        out = self._part(self.spec.layer.out)
        if share is None:
            return out(attended), None
        return back(out, attended, share.parts_of_heads(), share), None

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q ``[B, S, heads, D]``, k and v ``[B, S, kv_heads, D]``."""
        spec = self.spec
        found = [self._part(path)(x) for path in spec.layer.qkv]
        q, k, v = found if len(found) == 3 else self._parted(found[0])
        q, k = self._qk_normed(spec.layer.q_norm, q), self._qk_normed(spec.layer.k_norm, k)
        return q, k, self._heads(v)

    def _own(self, x: Tensor, mine: Heads) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`_projected`, of a rank's heads alone. Where a norm needs all heads, or somebody
        watches, all are made, and some taken."""
        layer = self.spec.layer
        parts = map(self._part, filter(None, (*layer.qkv, layer.q_norm, layer.k_norm)))
        if layer.whole_qk_norms or any(map(has_hooks, parts)):
            q, k, v = self._projected(x)
            return q[..., mine.queries, :], k[..., mine.keys, :], v[..., mine.keys, :]
        rows = mine.rows(self.spec)
        paths = layer.qkv if len(layer.qkv) == len(rows) else layer.qkv * len(rows)
        found = [self._part(path)(x, rows=own) for path, own in zip(paths, rows)]
        q, k, v = found if len(found) == 3 else self._parted(found[0])
        q, k = self._qk_normed(layer.q_norm, q), self._qk_normed(layer.k_norm, k)
        return q, k, self._heads(v)

    def _parted(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """The rows of one projection, told apart."""
        spec = self.spec
        if spec.layer.qkv_rows == "stacked":
            sizes = [n * spec.head_dim for n in (spec.heads, spec.kv_heads, spec.kv_heads)]
            return qkv.split(sizes, dim=-1)  # type: ignore[no-any-return]
        queries = spec.heads // spec.kv_heads
        grouped = qkv.unflatten(-1, (-1, queries + 2, spec.head_dim))
        return tuple(t.flatten(-3) for t in grouped.split((queries, 1, 1), dim=-2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.spec.head_dim))  # type: ignore[no-any-return]

    def _qk_normed(self, norm: str | None, x: Tensor) -> Tensor:
        if norm is None:
            return self._heads(x)
        if self.spec.layer.whole_qk_norms:
            return self._heads(self._part(norm)(x))
        return self._part(norm)(self._heads(x))  # type: ignore[no-any-return]

    def _attended(
        self, q: Tensor, k: Tensor, v: Tensor, spans: Tensor, slopes: tuple[float, ...] | None
    ) -> Tensor:
        spec, falls = self.spec, None
        if slopes is not None:
            made = _falls.__wrapped__ if torch_is_watched() else _falls
            falls = made(slopes, WIDE[q.dtype], q.device)
        return ops.attention(
            q, k, v, spans, causal=spec.causal, scale=spec.scales[self.index], slopes=falls,
            window=spec.window(self.index), softcap=spec.score_softcap, **self._dropout(q),
        )  # fmt: skip

    def _dropout(self, q: Tensor) -> dict[str, Any]:
        """Of the probabilities in a training step, from torch's generator."""
        p = self.spec.probability_dropout
        if not (p and self.module.training and current().dropout):
            return {}
        seed = torch.randint(2**62, (), dtype=torch.int64).to(q.device)
        return {"dropout": p, "seed": seed}


class Mlp(Branch):
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))``."""

    def __init__(self, module: nn.Module, spec: StackSpec) -> None:
        super().__init__(module, spec.layer.mlp)
        self.spec = spec.layer

    def __call__(self, x: Tensor) -> Tensor:
        spec, share = self.spec, current().share
        down = self._part(spec.down)
        if share is None:
            return down(self._inner(x))  # type: ignore[no-any-return]
        parts = share.parts(width(self._part(spec.up)) // (2 if spec.gate == spec.up else 1))
        mine = parts[share.ranks.rank]
        watched = map(self._part, filter(None, (spec.up, spec.gate, spec.act)))
        inner = self._inner(x)[..., mine] if any(map(has_hooks, watched)) else self._inner(x, mine)
        return back(down, inner, parts, share)

    def _inner(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """What is projected down, or those columns of it."""
        spec = self.spec
        up, act = self._part(spec.up), self._part(spec.act)
        if spec.gate is None:
            return activated(x, up, act, rows)
        if spec.gate != spec.up:
            return gated(x, self._part(spec.gate), up, act, rows)
        if rows is None:
            gate, other = up(x).chunk(2, dim=-1)
        else:
            behind = width(up) // 2
            gate = up(x, rows=rows)
            other = up(x, rows=slice(rows.start + behind, rows.stop + behind))
        return act(gate) * other  # type: ignore[no-any-return]
