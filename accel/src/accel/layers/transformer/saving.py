"""What autograd keeps of a transformer layer: the pieces of :class:`TransformerLayer`, as ops whose
backward has what it needs for speed, or computes it again where a flag says so.

Probabilities are never kept: to compute them again takes less than to keep them (8 x 128 x 768,
12 heads, forward and backward of the layer: 0.98-1.0 of the time in fp32, 0.76-0.9 in bf16, Zen 3).

Each Function keeps inputs and results of its own only, so that the second derivative, too, knows
where they came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from accel import ops
from accel.contracts import BIAS_ACT, LINEAR
from accel.contracts.attention import scale_of
from accel.contracts.checks import WIDE
from accel.contracts.random import kept
from accel.contracts.spans import readable
from accel.contracts.transformer import Pieces
from accel.ops.gradient import no_autocast


@dataclass(frozen=True)
class OpPieces(Pieces):
    """The public ops. The flags are those of :class:`TransformerLayerConfig`."""

    normalize_invertible: bool
    gelu_checkpoint: bool

    def layer_norm(self, x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
        if self.normalize_invertible:
            return _apply(InvertibleNorm, x, w, b, eps)
        return ops.layer_norm(x, w, b, eps=eps)

    def linear(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return ops.linear(x, w, b)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, spans: Tensor, mask: Tensor | None,
        seed: Tensor | None, causal: bool, dropout: float,
    ) -> Tensor:  # fmt: skip
        mask = None if mask is None else mask.to(q.dtype)
        if not readable(spans):
            return _apply(Attention, q, k, v, spans, mask, seed, causal, dropout)
        return ops.attention(q, k, v, spans, mask=mask, seed=seed, causal=causal, dropout=dropout)

    def act_linear(self, x: Tensor, w: Tensor, b: Tensor, act: str) -> Tensor:
        if self.gelu_checkpoint:
            return _apply(ActLinear, x, w, b, act)
        return ops.linear(ops.bias_act(x, act=act), w, b)

    def dropout_add(
        self, x: Tensor, residual: Tensor, seed: Tensor | None, rows: Tensor | None, p: float
    ) -> Tensor:
        # Under autocast the residual stream keeps the dtype it came in.
        return ops.dropout_add(x.to(residual.dtype), residual, None, seed, rows, p=p)


def _apply(function: type[_Piece], *args: Any) -> Tensor:
    """The (first) result of a piece, recorded where a gradient is wanted: Function.apply costs
    more than a small layer's op."""
    recorded = torch.is_grad_enabled() and any(
        isinstance(arg, Tensor) and arg.requires_grad for arg in args
    )
    way: Any = function.apply if recorded else function.forward
    result = way(*args)
    first: Tensor = result[0] if isinstance(result, tuple) else result
    return first


class _Piece(Function):
    generate_vmap_rule = True


class InvertibleNorm(_Piece):
    """``layer_norm`` that keeps its result, (x - mean) / sqrt(variance + eps) * w + b, and one over
    the root, from which the backward recovers what it needs of x. No element of w may be 0."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        torch._assert_async(
            w.ne(0).all(),
            "normalize_invertible divides by the norm's weight, which has a 0; set that element, "
            "or do without normalize_invertible",
        )
        wide = x.to(WIDE[x.dtype])
        variance = (wide - wide.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
        return ops.layer_norm(x, w, b, eps=eps), 1 / torch.sqrt(variance + eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output, *inputs[1:3])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_scale: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        y, scale, w, b = ctx.saved_tensors
        dtype, wide = y.dtype, scale.dtype
        grad = torch.zeros_like(y) if grad is None else grad
        grad, y, w, b = (t.to(wide) for t in (grad, y, w, b))
        normal = (y - b) / w
        g = grad * w
        dx = scale * (g - g.mean(-1, keepdim=True) - normal * (g * normal).mean(-1, keepdim=True))
        if grad_scale is not None:  # of a second derivative
            dx = dx - grad_scale * scale * scale * normal / y.shape[-1]
        leading = tuple(range(y.dim() - 1))
        return dx.to(dtype), (grad * normal).sum(leading), grad.sum(leading), None


class ActLinear(_Piece):
    """``linear(act(x), w, b)`` that keeps x and not its activation."""

    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor, act: str) -> Tensor:
        return ops.linear(ops.bias_act(x, act=act), w, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, _, ctx.act = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, w), needs = ctx.saved_tensors, ctx.needs_input_grad[:3]
        with no_autocast(x.device.type):
            h = ops.bias_act(x, act=ctx.act)
            dh, dw, db, *_ = LINEAR.backward(grad, needs, h, w.to(x.dtype), None, None, None)
            dx = None
            if dh is not None:
                dx = BIAS_ACT.backward(dh, (True, False), x, None, ctx.act)[0]
        return dx, dw, db, None


class Attention(_Piece):
    """``attention`` of sequences of one length, for where the op cannot read its spans and would
    hold all queries against all keys. The backward takes all sequences at once: probabilities
    are computed again, and what was dropped is worked out from the seed.

    Shapes are those of the op; probabilities are ``[B, heads, S, S]``, in q's dtype.
    """

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, spans: Tensor, mask: Tensor | None, seed: Tensor | None,
        causal: bool, dropout: float,
    ) -> Tensor:  # fmt: skip
        return ops.attention(q, k, v, spans, mask=mask, seed=seed, causal=causal, dropout=dropout)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q, k, v, spans, mask, seed, ctx.causal, ctx.dropout = inputs
        ctx.save_for_backward(q, k, v, mask, seed)
        ctx.batch = len(spans)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With scores s, probabilities p, what dropout makes of them d(p), and y = d(p) v:
        dp = d(dy v^T), ds = p (dp - sum(p dp))."""
        q, k, v, mask, seed = ctx.saved_tensors
        with no_autocast(q.device.type):
            p = _probabilities(q, k, ctx.batch, mask, ctx.causal)
            scale = scale_of(q, None)
            q, k, v, dy = (_by_head(t, ctx.batch) for t in (q, k, v, grad))
            dropped, dp = p, dy @ v.mT
            if ctx.dropout > 0:
                factor = _survivors(seed, p, ctx.dropout)
                dropped, dp = p * factor, dp * factor
            ds = p * (dp - (p * dp).sum(-1, keepdim=True))
            dq, dk, dv = (ds @ k) * scale, (ds.mT @ q) * scale, dropped.mT @ dy
        d_mask = ds.sum_to_size(mask.shape) if ctx.needs_input_grad[4] else None
        return *map(_by_row, (dq, dk, dv)), None, d_mask, None, None, None


def _probabilities(q: Tensor, k: Tensor, batch: int, mask: Tensor | None, causal: bool) -> Tensor:
    wide = WIDE[q.dtype]
    with no_autocast(q.device.type):
        scores = _by_head(q.to(wide), batch) @ _by_head(k.to(wide), batch).mT
        if causal:
            length = scores.shape[-1]
            later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        mask = None if mask is None else mask.to(wide)
        return ops.softmax(scores, mask, scale=scale_of(q, None)).to(q.dtype)


def _survivors(seed: Tensor, p: Tensor, dropout: float) -> Tensor:
    """What dropout multiplies each probability by, 0 or 1/(1 - dropout); the rows are numbered as
    ``attention`` does it."""
    batch, heads, length, _ = p.shape
    head = torch.arange(batch * heads, device=p.device).reshape(batch, heads, 1) << 32
    rows = head + torch.arange(length, device=p.device)
    factor = 1 / (1 - dropout) if dropout < 1 else 0.0
    return kept(seed, rows, length, dropout).to(p.dtype) * factor


def _by_head(t: Tensor, batch: int) -> Tensor:
    """``[B * S, heads, D]`` as ``[B, heads, S, D]``."""
    length = t.shape[0] // max(batch, 1)  # told, since -1 cannot be inferred beside a 0
    return t.reshape(batch, length, *t.shape[1:]).transpose(1, 2)


def _by_row(t: Tensor) -> Tensor:
    """``[B, heads, S, D]`` as ``[B * S, heads, D]``."""
    return t.transpose(1, 2).flatten(0, 1)
