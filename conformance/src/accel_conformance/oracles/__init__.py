"""Oracles: what an op's result and gradients are, in numpy's float64, without torch.

An oracle knows an op by its contract's words only. Its arguments are the op's, in the schema's
order, every floating point tensor a float64 array that equals it exactly. float64 results are
themselves measured against float64: numpy's own error is some 3e-16 of the result, a thirtieth of
that budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from accel_conformance.oracles import (
    attention,
    composed,
    elementwise,
    embedding,
    linear,
    logprob,
    norm,
    quantized,
    rotary,
    transformer,
)
from accel_conformance.oracles.summed import Summed

__all__ = ["ORACLES", "Oracle", "Summed"]


@dataclass(frozen=True)
class Oracle:
    """``value(*args)`` is the result, of several results a tuple. ``gradient(grad, *args)``, where
    ``grad`` then is a tuple too, has every argument's gradient as the sum it is (None for one that
    has none)."""

    value: Callable[..., Any]
    gradient: Callable[..., tuple[Summed | None, ...]]


ORACLES: dict[str, Oracle] = {
    "linear": Oracle(linear.linear, linear.linear_gradient),
    "gated_linear": Oracle(linear.gated_linear, linear.gated_linear_gradient),
    "lora_linear": Oracle(linear.lora_linear, linear.lora_linear_gradient),
    "norm_linear": Oracle(composed.norm_linear, composed.norm_linear_gradient),
    "quantized_linear": Oracle(quantized.quantized_linear, quantized.quantized_linear_gradient),
    "grouped_linear": Oracle(composed.grouped_linear, composed.grouped_linear_gradient),
    "tiled_mlp": Oracle(composed.tiled_mlp, composed.tiled_mlp_gradient),
    "rms_norm": Oracle(norm.rms_norm, norm.rms_norm_gradient),
    "layer_norm": Oracle(norm.layer_norm, norm.layer_norm_gradient),
    "rotary": Oracle(rotary.rotary, rotary.rotary_gradient),
    "attention": Oracle(attention.attention, attention.attention_gradient),
    "embedding": Oracle(embedding.embedding, embedding.embedding_gradient),
    "tiled_linear": Oracle(linear.tiled_linear, linear.tiled_linear_gradient),
    "logprob": Oracle(logprob.logprob, logprob.logprob_gradient),
    "dropout_add": Oracle(elementwise.dropout_add, elementwise.dropout_add_gradient),
    "bias_act": Oracle(elementwise.bias_act, elementwise.bias_act_gradient),
    "softmax": Oracle(elementwise.softmax, elementwise.softmax_gradient),
    "add_norm": Oracle(norm.add_norm, norm.add_norm_gradient),
    "transformer_layer": Oracle(
        transformer.transformer_layer, transformer.transformer_layer_gradient
    ),
}
