"""transformer_layer in float64, and its gradients: the chain of its parts' oracles.

Errors that come down the chain are as large as what they are errors of: each part is gone back
through with the size of the incoming gradient's addends as well as with their total.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accel_conformance.measure import Array
from accel_conformance.oracles.activation import activate, slope
from accel_conformance.oracles.attention import attention, attention_gradient
from accel_conformance.oracles.bounded import stored
from accel_conformance.oracles.elementwise import dropout_add, dropout_add_gradient
from accel_conformance.oracles.linear import affine, affine_gradient
from accel_conformance.oracles.norm import layer_norm, layer_norm_gradient
from accel_conformance.oracles.summed import Summed

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class _Options:
    heads: int
    pre_norm: bool
    causal: bool
    act: str
    eps: float
    attn_dropout: float
    hidden_dropout: float


@dataclass
class _Steps:
    """Everything on the way: what the projections are of, attention's arguments, its context and
    output, the first sum a and its norm, the inner layer before and after its activation, what is
    added to the second sum y."""

    projected: Array
    attended: tuple[Any, ...]
    context: Array
    out: Array
    a: Array
    normed: Array
    inner: Array
    active: Array
    down: Array
    y: Array


def transformer_layer(x: Array, *args: Any) -> Array:
    steps, options = _forward(x, *args), _Options(*args[14:])
    norm_w, norm_b = args[10:12]
    return steps.y if options.pre_norm else layer_norm(stored(steps.y), norm_w, norm_b, options.eps)


def _forward(x: Array, *args: Any) -> _Steps:
    qkv_w, qkv_b, out_w, out_b, attn_norm_w, attn_norm_b = args[:6]
    up_w, up_b, down_w, down_b, norm_w, norm_b, mask, seed = args[6:14]
    options = _Options(*args[14:])
    seeds = (None, None, None) if seed is None else tuple(seed)
    dropped = _numbers(x), options.hidden_dropout

    projected = stored(layer_norm(x, norm_w, norm_b, options.eps)) if options.pre_norm else x
    attended = _of_attention(stored(affine(projected, qkv_w, qkv_b)), mask, seeds[0], options)
    context = stored(attention(*attended)).reshape(*x.shape)
    out = stored(affine(context, out_w, out_b))
    a = stored(dropout_add(out, x, None, seeds[1], *dropped))
    normed = stored(layer_norm(a, attn_norm_w, attn_norm_b, options.eps))
    inner = stored(affine(normed, up_w, up_b))
    active = stored(activate(inner, options.act))
    down = stored(affine(active, down_w, down_b))
    y = dropout_add(down, a if options.pre_norm else normed, None, seeds[2], *dropped)
    return _Steps(projected, attended, context, out, a, normed, inner, active, down, y)


def _of_attention(
    qkv: Array, mask: Array | None, seed: Integers | None, options: _Options
) -> tuple[Any, ...]:
    """The arguments of attention within each sequence."""
    batch, length, width = qkv.shape
    size = width // 3 // options.heads
    q, k, v = np.moveaxis(qkv.reshape(-1, 3, options.heads, size), 1, 0)
    spans = np.array([(b * length, length) * 2 for b in range(batch)], np.int64).reshape(-1, 4)
    dropout = options.attn_dropout
    return q, k, v, spans, mask, None, seed, options.causal, None, None, None, dropout


def _numbers(x: Array) -> Integers:
    """Of each row: its sequence's number in the upper half, its place in the lower."""
    sequence, place = np.indices(x.shape[:2])
    return (sequence << 32) + place


def transformer_layer_gradient(grad: Array, x: Array, *args: Any) -> tuple[Summed | None, ...]:
    qkv_w, _, out_w, _, attn_norm_w, attn_norm_b, up_w, _, down_w = args[:9]
    norm_w, norm_b, _, seed = args[10:14]
    options, steps = _Options(*args[14:]), _forward(x, *args)
    seeds = (None, None, None) if seed is None else tuple(seed)
    dropped = _numbers(x), options.hidden_dropout

    dy, d_norm = Summed.of(grad), []
    if not options.pre_norm:
        dy, *d_norm = _through(layer_norm_gradient, dy, steps.y, norm_w, norm_b, options.eps)
    beside = steps.a if options.pre_norm else steps.normed
    d_down, da = _through(dropout_add_gradient, dy, steps.down, beside, None, seeds[2], *dropped)
    d_active, *d_down_wb = _through(affine_gradient, d_down, steps.active, down_w)
    bend = slope(steps.inner, options.act)
    d_inner = Summed(d_active.total * bend, d_active.spread * abs(bend))
    d_normed, *d_up_wb = _through(affine_gradient, d_inner, steps.normed, up_w)
    if not options.pre_norm:
        d_normed = da + d_normed
    through_norm, *d_attn_norm = _through(
        layer_norm_gradient, d_normed, steps.a, attn_norm_w, attn_norm_b, options.eps
    )
    da = da + through_norm if options.pre_norm else through_norm
    d_out, dx = _through(dropout_add_gradient, da, steps.out, x, None, seeds[1], *dropped)
    d_context, *d_out_wb = _through(affine_gradient, d_out, steps.context, out_w)
    heads_first = d_context.reshape(*steps.attended[0].shape)
    dq, dk, dv, *d_mask = _through(attention_gradient, heads_first, *steps.attended)
    fused = (*x.shape[:2], 3 * x.shape[2])
    totals, spreads = zip(*((d.total, d.spread) for d in (dq, dk, dv)))
    d_qkv = Summed(np.stack(totals, 1), np.stack(spreads, 1)).reshape(*fused)
    d_projected, *d_qkv_wb = _through(affine_gradient, d_qkv, steps.projected, qkv_w)
    if options.pre_norm:
        d_projected, *d_norm = _through(
            layer_norm_gradient, d_projected, x, norm_w, norm_b, options.eps
        )
    weights = (*d_qkv_wb, *d_out_wb, *d_attn_norm, *d_up_wb, *d_down_wb, *d_norm)
    return dx + d_projected, *weights, *(d_mask or [None]), *(None,) * 8


def _through(
    gradient: Callable[..., tuple[Summed | None, ...]], dz: Summed, *args: Any
) -> list[Summed]:
    """A part's gradients of what has one, from the gradient of its result."""
    found = gradient(dz.total, *args), gradient(np.maximum(np.abs(dz.total), dz.spread), *args)
    return [
        Summed(of.total, np.maximum(of.spread, over.spread))
        for of, over in zip(*found)
        if of is not None and over is not None
    ]
