"""transformer_layer over the other implementations of eager torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from accel.contracts.transformer import Pieces, layer
from accel.torch_impls import attention, elementwise, linear, norm

_KERNELS: dict[str, Callable[..., Tensor]] = {
    "attention": attention.attention,
    "bias_act": elementwise.bias_act,
    "dropout_add": elementwise.dropout_add,
    "layer_norm": norm.layer_norm,
    "linear": linear.linear,
}
_PIECES = Pieces(lambda contract, args: _KERNELS[contract.name](*args))


def transformer_layer(x: Tensor, *args: Any) -> Tensor:
    weights, (mask, seed), options = args[:12], args[12:14], args[14:]
    return layer(_PIECES, x, weights, mask, seed, *options)
