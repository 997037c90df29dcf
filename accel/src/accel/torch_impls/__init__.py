"""Eager torch implementations that serve every device, and the references as the last resort.

One builder per family. What eager torch offers as one call is called as one call; the rest is the
shortest composition, no slower than what a user would write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accel.contracts import CONTRACTS, Contract
from accel.contracts.checks import FLOATS
from accel.op_builder import Impl, Kernel, OpBuilder
from accel.torch_impls import (
    attention,
    elementwise,
    linear,
    logprob,
    norm,
    tiled_mlp,
    transformer,
    transformer_layer,
)

TORCH = "torch"
COMPOSED = "torch_composed"
REFERENCE = "reference"
ANY_DEVICE = "*"

_KERNELS: dict[str, Callable[..., Any]] = {
    "linear": linear.linear,
    "gated_linear": linear.gated_linear,
    "lora_linear": linear.lora_linear,
    "norm_linear": linear.norm_linear,
    "quantized_linear": linear.quantized_linear,
    "grouped_linear": linear.grouped_linear,
    "rms_norm": norm.rms_norm,
    "layer_norm": norm.layer_norm,
    "rotary": transformer.rotary,
    "attention": Kernel(attention.attention, attention.forward),
    "embedding": transformer.embedding,
    "tiled_linear": Kernel(linear.tiled_linear, into=linear.tiled_linear_into),
    "tiled_mlp": tiled_mlp.tiled_mlp,
    "logprob": logprob.logprob,
    "transformer_layer": transformer_layer.composed(),
    "dropout_add": elementwise.dropout_add,
    "bias_act": elementwise.bias_act,
    "softmax": elementwise.softmax,
    "add_norm": norm.add_norm,
}

# Where torch's own differs with the shape and a composition of other operations does not.
_COMPOSED: dict[str, Callable[..., Any]] = {"bias_act": elementwise.bias_act_composed}


def _impls(family: str) -> tuple[Impl, ...]:
    ops = [c for c in CONTRACTS.values() if c.family == family]
    dtypes = frozenset(FLOATS)
    # Eager torch picks its matrix kernels by the number of rows; its norms work row by row.
    torch_impls = [
        Impl(c.name, TORCH, dtypes, 10, c.reference_invariant and c.name not in _COMPOSED)
        for c in ops
    ]
    composed = [Impl(c.name, COMPOSED, dtypes, 5, True) for c in ops if c.name in _COMPOSED]
    references = [Impl(c.name, REFERENCE, dtypes, 0, c.reference_invariant) for c in ops]
    return (*torch_impls, *composed, *references)


class _TorchBuilder(OpBuilder):
    device_type = ANY_DEVICE

    def load(self, impl: Impl) -> Callable[..., Any]:
        if impl.id == REFERENCE:
            return _checked(CONTRACTS[impl.op])
        return (_KERNELS if impl.id == TORCH else _COMPOSED)[impl.op]


def _checked(contract: Contract) -> Callable[..., Any]:
    """The reference as a kernel: torch does not refuse everything that the contract does."""

    def reference(*args: Any) -> Any:
        contract.check(*args)
        return contract.reference(*args)

    return reference


class LinearBuilder(_TorchBuilder):
    impls = _impls("LinearBuilder")


class TransformerBuilder(_TorchBuilder):
    impls = _impls("TransformerBuilder")


class TilingBuilder(_TorchBuilder):
    impls = _impls("TilingBuilder")


TORCH_BUILDERS: tuple[OpBuilder, ...] = (LinearBuilder(), TransformerBuilder(), TilingBuilder())
