"""linear, gated_linear, lora_linear and tiled_linear over torch's own matrix products."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.contracts.activation import activate

# Taken at import: some libraries replace torch.nn.functional.linear for the whole process.
_linear = F.linear  # noqa: TID251 - this is where it is meant


def linear(
    x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out_dtype: torch.dtype | None
) -> Tensor:
    if act is None and (out_dtype is None or out_dtype is x.dtype):
        return _product(x, w, b)
    return activate(_wide(x, w, b), act).to(out_dtype or x.dtype)


def gated_linear(
    x: Tensor, w_gate: Tensor, w_up: Tensor, b_gate: Tensor | None, b_up: Tensor | None,
    act: str, out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    gate = activate(_wide(x, w_gate, b_gate), act)
    return (gate * _wide(x, w_up, b_up)).to(out_dtype or x.dtype)


def lora_linear(
    x: Tensor, w: Tensor, lora_a: Tensor, lora_b: Tensor, b: Tensor | None, scale: float,
    out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    share = _wide(_wide(x, lora_a, None), lora_b, None) * scale
    return (_wide(x, w, b) + share).to(out_dtype or x.dtype)


def tiled_linear(
    x: Tensor, w: Tensor, b: Tensor | None, partial: Tensor | None, out_dtype: torch.dtype | None
) -> Tensor:
    if partial is None:
        return linear(x, w, b, None, out_dtype)
    if partial.dtype is not x.dtype or (out_dtype or x.dtype) is not x.dtype:
        return _wide(x, w, b).add_(partial).to(out_dtype or x.dtype)
    _require_one_device(x, w, b, partial)
    # Added to in place by the product itself, which spares a pass over the result.
    z = partial.clone(memory_format=torch.contiguous_format) if b is None else partial + b
    z = z.contiguous()
    m, n = math.prod(x.shape[:-1]), w.shape[0]  # counted: -1 cannot be inferred beside a 0
    z.view(m, n).addmm_(x.reshape(m, w.shape[1]), w.t())
    return z


def _wide(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """The product in fp32, so that what follows is not computed on rounded values.

    torch has no product of half-precision tensors with an fp32 result on every device.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return _product(x.to(wide), w.to(wide), None if b is None else b.to(wide))


def _product(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    _require_one_device(x, w, b)
    if b is None or x.dim() == 2:
        return _linear(x, w, b)
    # Of other rows with a bias torch returns a view of their product, which sharding warns of.
    k, n = w.shape[1], w.shape[0]
    y = _linear(x.reshape(math.prod(x.shape[:-1]), k), w, b)
    return torch.ops.aten._unsafe_view.default(y, (*x.shape[:-1], n))  # type: ignore[no-any-return]


def _require_one_device(x: Tensor, *others: Tensor | None) -> None:
    # torch 2.13 multiplies a real x by a meta weight without a word, into garbage.
    for other in others:
        if other is not None and other.device != x.device:
            raise RuntimeError(f"x is on {x.device}, another on {other.device}; move one of them")
