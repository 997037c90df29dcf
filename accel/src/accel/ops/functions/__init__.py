"""The typed function of each op, by family. What it means is its contract's to say, exactly.

OpArgumentError where an argument does not fit; every error says what was asked, found, possible.
"""

from accel.ops.functions.linear import (
    gated_linear,
    grouped_linear,
    linear,
    lora_linear,
    norm_linear,
    quantized_linear,
)
from accel.ops.functions.tiling import logprob, tiled_linear, tiled_mlp
from accel.ops.functions.transformer import (
    add_norm,
    attention,
    bias_act,
    dropout_add,
    embedding,
    layer_norm,
    rms_norm,
    rotary,
    softmax,
)
from accel.ops.functions.transformer_layer import transformer_layer

__all__ = [
    "add_norm",
    "attention",
    "bias_act",
    "dropout_add",
    "embedding",
    "gated_linear",
    "grouped_linear",
    "layer_norm",
    "linear",
    "logprob",
    "lora_linear",
    "norm_linear",
    "quantized_linear",
    "rms_norm",
    "rotary",
    "softmax",
    "tiled_linear",
    "tiled_mlp",
    "transformer_layer",
]
