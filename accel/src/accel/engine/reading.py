"""What policies share when they read a configuration of transformers."""

from __future__ import annotations

import math
from typing import Any

import torch

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
# Positions of a model without any: more than there will be tokens.
NO_LIMIT = 1 << 40
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


def alibi_slopes(heads: int, scale: float = 1.0, *, rounded: bool = False) -> tuple[float, ...]:
    """ALiBi's (Press et al. 2022): a geometric sequence, and between its members where the heads
    are no power of two; times ``scale``, after they were rounded to bf16 if ``rounded``."""
    whole = 2 ** math.floor(math.log2(heads))
    found = [2.0 ** (-8.0 * i / whole) for i in range(1, whole + 1)]
    found += [2.0 ** (-4.0 * i / whole) for i in range(1, 2 * (heads - whole), 2)]
    if rounded:
        found = torch.tensor(found).bfloat16().tolist()
    return tuple(slope * scale for slope in found)


def windows_by_type(config: Any) -> tuple[int | None, ...]:
    """Of each layer, by what the configuration calls it."""
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    return tuple(config.sliding_window if slides else None for slides in sliding)


def unserved(config: Any, **wanted: Any) -> list[Refusal]:
    """A refusal for each setting that has another value than the one that is served."""
    found = {name: getattr(config, name, value) for name, value in wanted.items()}
    return [
        Refusal(name, f"{name}={wanted[name]!r}", repr(value), AS_IT_IS)
        for name, value in found.items()
        if value != wanted[name]
    ]
