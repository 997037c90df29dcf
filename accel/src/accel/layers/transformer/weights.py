"""The twelve weights of a transformer layer: their shapes, what fills them, what watches them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from accel.contracts import checks
from accel.errors import OpArgumentError

# What initial weights and biases are of, in order.
PARTS = (
    "query", "key", "value", "attention's output", "attention's norm", "the inner layer",
    "the outer layer", "the last norm",
)  # fmt: skip
_TAGS = (
    "V_W", "V_B", "O_W", "O_B", "N2_W", "N2_B", "int_W", "int_B", "out_W", "out_B", "norm_W",
    "norm_B",
)  # fmt: skip


def shapes(hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    """Of the parameters, in the order of the op."""
    return {
        "attn_qkvw": (3 * hidden, hidden), "attn_qkvb": (3 * hidden,),
        "attn_ow": (hidden, hidden), "attn_ob": (hidden,),
        "attn_nw": (hidden,), "attn_nb": (hidden,),
        "inter_w": (inner, hidden), "inter_b": (inner,),
        "output_w": (hidden, inner), "output_b": (hidden,),
        "norm_w": (hidden,), "norm_b": (hidden,),
    }  # fmt: skip


def require_parts(
    name: str, given: str, places: Sequence[Tensor], tensors: Sequence[Tensor] | None
) -> None:
    """``tensors``, if any, are one for each of :data:`PARTS`, of the shape of its place."""
    if tensors is None:
        return
    if len(tensors) != len(PARTS):
        raise OpArgumentError(
            f"{name}: {given} must be {len(PARTS)} tensors, of {', '.join(PARTS)}; found "
            f"{len(tensors)}"
        )
    for part, place, tensor in zip(PARTS, places, tensors):
        if tensor.shape != place.shape:
            raise OpArgumentError(
                f"{name}: of {given}, that of {part} must be {list(place.shape)}; found "
                f"{checks.describe(tensor)}"
            )


@torch.no_grad()
def fill(places: Sequence[Tensor], tensors: Sequence[Tensor] | None) -> None:
    """Copy ``tensors`` to ``places``; None for what is there."""
    for place, tensor in zip(places, () if tensors is None else tensors):
        place.copy_(tensor)


def watched(weights: Sequence[Tensor], grads: list[Any]) -> list[Tensor]:
    """The weights, by other names, of which each appends its gradient to ``grads`` with its tag."""

    def watch(weight: Tensor, tag: str) -> Tensor:
        alias = weight.view_as(weight)  # a hook on the parameter itself would stay there
        if alias.requires_grad:
            # A copy: the parameter accumulates into what it got first.
            alias.register_hook(lambda grad: grads.append([grad.clone(), tag]))
        return alias

    return [watch(weight, tag) for weight, tag in zip(weights, _TAGS, strict=True)]
