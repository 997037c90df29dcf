"""linear and its kin over torch's own matrix products."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from accel.contracts import grouped_linear as grouped
from accel.contracts.checks import WIDE
from accel.contracts.norm_linear import require_kind
from accel.contracts.quantized_linear import dequantize, whole
from accel.torch_impls.elementwise import TORCH_S_OWN, require_one_device
from accel.torch_impls.norm import layer_norm, rms_norm
from accel.torch_impls.views import unviewed

# Taken at import: some libraries replace torch.nn.functional.linear for the whole process.
_linear = F.linear  # noqa: TID251 - this is where it is meant


def linear(
    x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out_dtype: torch.dtype | None
) -> Tensor:
    if act is None and (out_dtype is None or out_dtype is x.dtype):
        return _product(x, w, b)
    return TORCH_S_OWN[act](_wide(x, w, b)).to(out_dtype or x.dtype)


def gated_linear(
    x: Tensor, w_gate: Tensor, w_up: Tensor, b_gate: Tensor | None, b_up: Tensor | None,
    act: str, out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    rows = x.to(WIDE[x.dtype])
    gate = TORCH_S_OWN[act](_wide(rows, w_gate, b_gate))
    return gate.mul_(_wide(rows, w_up, b_up)).to(out_dtype or x.dtype)


def lora_linear(
    x: Tensor, w: Tensor, lora_a: Tensor, lora_b: Tensor, b: Tensor | None, scale: float,
    out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).to(WIDE[x.dtype])
    z = _wide(rows, w, b)
    require_one_device(rows, lora_b)
    z.addmm_(_wide(rows, lora_a, None), lora_b.to(z.dtype).t(), alpha=scale)
    return unviewed(z.to(out_dtype or x.dtype).view(*x.shape[:-1], w.shape[0]))


def norm_linear(
    x: Tensor, w: Tensor, norm_w: Tensor | None, norm_b: Tensor | None, b: Tensor | None,
    kind: str, eps: float, act: str | None, out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    require_kind(kind, norm_b)
    if act is not None or (out_dtype is not None and out_dtype is not x.dtype):
        # The product is computed in fp32 then, so the norm need not be rounded either.
        out_dtype, wide = out_dtype or x.dtype, WIDE[x.dtype]
        norm_w, norm_b, b = (None if t is None else t.to(wide) for t in (norm_w, norm_b, b))
        x, w = x.to(wide), w.to(wide)
    normed = rms_norm(x, norm_w, eps) if kind == "rms" else layer_norm(x, norm_w, norm_b, eps)
    return linear(normed, w, b, act, out_dtype)


def grouped_linear(
    x: Tensor, w: Tensor, ends: Tensor, b: Tensor | None, act: str | None,
    out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """Expert by expert; the ends are read on the host."""
    if not x.device == w.device == ends.device:
        raise RuntimeError(f"x is on {x.device}, w on {w.device}, ends on {ends.device}; move them")
    dtype = out_dtype or x.dtype
    if x.is_meta:  # nothing to read, and nothing to compute
        return x.new_empty((x.shape[0], w.shape[1]), dtype=dtype)
    own = grouped.ranges(ends, x.shape[0])
    found = [
        linear(x[rows], w[e], None if b is None else b[e], act, out_dtype)
        for e, rows in enumerate(own)
        if rows.start < rows.stop
    ]
    rest = x.shape[0] - (own[-1].stop if own else 0)
    if rest or not found:
        found.append(x.new_zeros((rest, w.shape[1]), dtype=dtype))
    return torch.cat(found)


def quantized_linear(
    x: Tensor, w: Tensor, scales: Tensor, b: Tensor | None, bits: int, act: str | None,
    out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    # Not in x's dtype: rounded weights would overdraw the budget of fp16, and of an fp32 result.
    require_one_device(x, scales, b)
    if scales.shape[1] == 1:  # a row's, and so a factor of what its product is
        z = _wide(x, whole(w, bits), None).mul_(scales.squeeze(1))
        z = z if b is None else z.add_(b)
    else:
        z = _wide(x, dequantize(w, scales, bits), b)
    return TORCH_S_OWN[act](z).to(out_dtype or x.dtype)


def tiled_linear(
    x: Tensor, w: Tensor, b: Tensor | None, partial: Tensor | None, out_dtype: torch.dtype | None
) -> Tensor:
    if partial is None:
        return linear(x, w, b, None, out_dtype)
    out = partial.new_empty(partial.shape, dtype=out_dtype or x.dtype)
    return tiled_linear_into(x, w, b, partial, out)


def tiled_linear_into(
    x: Tensor, w: Tensor, b: Tensor | None, partial: Tensor | None, out: Tensor
) -> Tensor:
    require_one_device(x, w, b, partial, out)
    if not out.dtype is x.dtype is (x if partial is None else partial).dtype:
        z = _wide(x, w, b)
        return out.copy_(z if partial is None else z.add_(partial))
    m, n = math.prod(x.shape[:-1]), w.shape[0]  # counted: -1 cannot be inferred beside a 0
    rows, columns, sums = x.reshape(m, w.shape[1]), w.t(), out.view(m, n)
    if partial is not None:
        # Added to by the product itself, which spares a pass over the result.
        out.copy_(partial) if b is None else torch.add(partial, b, out=out)
        sums.addmm_(rows, columns)
    elif b is None:
        torch.mm(rows, columns, out=sums)
    else:
        torch.addmm(b, rows, columns, out=sums)
    return out


def _wide(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """The product in fp32, so that what follows is not computed on rounded values.

    torch has no product of half-precision tensors with an fp32 result on every device.
    """
    wide = WIDE[x.dtype]
    if x.dtype is wide and w.dtype is wide:
        return _product(x, w, b)
    return _product(x.to(wide), w.to(wide), None if b is None else b.to(wide))


def _product(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    require_one_device(x, w, b)
    if b is None or x.dim() == 2:
        return _linear(x, w, b)
    # Of other rows with a bias torch returns a view of their product, which sharding warns of.
    k, n = w.shape[1], w.shape[0]
    y = _linear(x.reshape(math.prod(x.shape[:-1]), k), w, b)
    return unviewed(y.view(*x.shape[:-1], n))
