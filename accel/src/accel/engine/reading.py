"""What policies share when they read a configuration of transformers."""

from __future__ import annotations

from typing import Any

from accel.refusal import Refusal

# transformers' names of activations -> those of accel.contracts.activation.
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
# The remedy of what no setting changes.
AS_IT_IS = "use the model without the engine"
# Kinds of rotary positions whose frequencies change with the longest sequence in sight.
_CHANGING_ROTARY = ("dynamic", "longrope")


def activation_reasons(name: str) -> list[Refusal]:
    """A refusal if :data:`ACTIVATIONS` lacks the activation."""
    if name in ACTIVATIONS:
        return []
    return [Refusal("activation", ", ".join(sorted(ACTIVATIONS)), name, AS_IT_IS)]


def rotary_reasons(config: Any) -> list[Refusal]:
    """A refusal if a token's angles would depend on what stands beside it."""
    kind = config.rope_parameters["rope_type"]
    if not any(changing in kind for changing in _CHANGING_ROTARY):
        return []
    have = f"rope_type {kind!r}, whose angles depend on the batch's longest sequence"
    return [Refusal("rotary", "frequencies fixed when the model is made", have, AS_IT_IS)]


def unserved(config: Any, **wanted: Any) -> list[Refusal]:
    """A refusal for each setting that has another value than the one that is served."""
    found = {name: getattr(config, name, value) for name, value in wanted.items()}
    return [
        Refusal(name, f"{name}={wanted[name]!r}", repr(value), AS_IT_IS)
        for name, value in found.items()
        if value != wanted[name]
    ]
