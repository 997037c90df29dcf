"""Portable Triton kernels, shared by every device that Triton compiles for.

A kernel's module holds its ``@triton.jit`` functions and a launch function that takes a
:class:`~accel.triton_kernels.tuning.Tuning` and then the arguments of the op's schema. These
modules import triton and are imported by nobody but :mod:`accel.triton_kernels.builders`, when a
kernel is loaded; importing this package imports no triton.

builders.py      the builders that backends subclass        tuning.py   what a backend says of speed
launching.py     from tensors to a launch                   product.py  sums over K, in one order
activation.py    activations                                rows.py     rows as kernels read them
curves.py        tanh, and activations' slopes              random.py   what dropout leaves
limits.py        what they cannot do, told without triton   others      one op or a few of a kind

What every kernel keeps: fp16 and bf16 are widened to fp32 and never computed in; an fp32 product is
one of fp32 ("ieee", no TF32); a row is summed in one order, whatever stands beside it and however
the work is cut; no sum is split over programs, nothing is added atomically; addresses are int64.
"""

from __future__ import annotations

# op -> the module here and the launch function in it. A new op is one line.
KERNELS = {
    "linear": "linear:linear",
    "gated_linear": "gated_linear:gated_linear",
    "lora_linear": "lora_linear:lora_linear",
    "quantized_linear": "quantized_linear:quantized_linear",
    "norm_linear": "norm_linear:norm_linear",
    "grouped_linear": "grouped_linear:grouped_linear",
    "tiled_linear": "tiled_linear:tiled_linear",
    "rms_norm": "norm:rms_norm",
    "layer_norm": "norm:layer_norm",
    "add_norm": "norm:add_norm",
    "bias_act": "elementwise:bias_act",
    "dropout_add": "elementwise:dropout_add",
    "softmax": "softmax:softmax",
    "rotary": "rotary:rotary",
    "embedding": "embedding:embedding",
    "attention": "attention:attention",
    "transformer_layer": "layer:transformer_layer",
    "logprob": "logprob:logprob",
}

# op -> its gradient, of those that are made of the arguments alone: ``accel.Kernel.backward``
BACKWARDS = {
    "linear": "gradients:linear",
    "gated_linear": "gradients:gated_linear",
    "rms_norm": "norm:rms_norm_gradient",
    "layer_norm": "norm:layer_norm_gradient",
    "add_norm": "norm:add_norm_gradient",
    "bias_act": "elementwise:bias_act_gradient",
    "dropout_add": "elementwise:dropout_add_gradient",
    "rotary": "rotary:rotary_gradient",
    "transformer_layer": "layer:transformer_layer_gradient",
}

# op -> the launch function that keeps something for its gradient: ``accel.Kernel.forward``
FORWARDS = {
    "softmax": "softmax:forward",
    "attention": "attention:forward",
    "logprob": "logprob:forward",
}

# op -> the launch function that writes its result to a place: ``accel.Kernel.into``
INTO = {
    "tiled_linear": "tiled_linear:tiled_linear_into",
}
