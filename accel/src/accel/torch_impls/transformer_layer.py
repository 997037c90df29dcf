"""transformer_layer over kernels of its pieces, eager torch's or a backend's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from accel.contracts.contract import Contract
from accel.contracts.linear import LINEAR
from accel.contracts.transformer import Backward, Pieces, Tape, layer
from accel.contracts.transformer_layer import gradients
from accel.op_builder import Kernel
from accel.torch_impls import attention, elementwise, linear, norm

_TORCH_S = {
    "attention": Kernel(attention.attention, attention.forward),
    "bias_act": Kernel(elementwise.bias_act),
    "dropout_add": Kernel(elementwise.dropout_add),
    "layer_norm": Kernel(norm.layer_norm),
    "linear": Kernel(linear.linear),
}

PIECES = tuple(_TORCH_S)  # the ops that the layer is made of


class _Fused(Pieces):
    """Pieces whose linear has the activation as cheaply as not: it never goes through memory
    without."""

    def mlp(
        self, x: Tensor, up_w: Tensor, up_b: Tensor, down_w: Tensor, down_b: Tensor, act: str
    ) -> Tensor:
        return self.linear(self._call(LINEAR, x, up_w, up_b, act=act), down_w, down_b)


def composed(kernels: Mapping[str, Kernel] = _TORCH_S, *, fuses_act: bool = False) -> Kernel:
    """The layer over ``kernels`` of :data:`PIECES`; eager torch's unless they are given. It
    keeps nothing but its arguments: the backward computes it again, and goes back by the kernels'
    own gradients."""
    pieces = (_Fused if fuses_act else Pieces)(
        lambda contract, args: kernels[contract.name].run(*args)
    )

    def run(x: Tensor, *args: Any) -> Tensor:
        weights, (mask, seed), options = args[:12], args[12:14], args[14:]
        return layer(pieces, x, weights, mask, seed, *options)

    def backward(grad: Tensor, needs: tuple[bool, ...], x: Tensor, *args: Any) -> Any:
        return gradients(Tape(partial(_record, kernels)), grad, needs, x, *args)

    return Kernel(run, backward=backward)


def _record(
    kernels: Mapping[str, Kernel], contract: Contract, args: tuple[Any, ...]
) -> tuple[Tensor, Backward]:
    """A piece, and its gradient: the kernel's own, or the contract's where it has none for these
    arguments."""
    kernel = kernels[contract.name]
    own = kernel.backward
    if kernel.forward is None:
        result = kernel.run(*args)
    else:
        result, kept, own = kernel.forward(*args)
        own = None if own is None else partial(own, kept=kept)

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Any:
        found = NotImplemented if own is None else own(grad, needs, *args)
        return contract.backward(grad, needs, *args) if found is NotImplemented else found

    return result, backward
