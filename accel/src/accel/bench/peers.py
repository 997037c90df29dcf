"""Libraries that serve one of our ops on several devices, in one table; a device's own come from
its plugin (:meth:`accel.OpBuilder.peers`).

None is imported before its turn. What is missing is named with the way to install it, what raises
with its error, and what computes something else with how far off it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from accel.bench.offers import Peer
from accel.contracts.checks import name_of
from accel.op_builder import Request
from accel.refusal import Refusal

HALVES = (torch.float16, torch.bfloat16)


Reasons = Callable[[Request], Sequence[Refusal]]


def installed(module: str, install: str) -> Reasons:
    """Why it cannot serve if its module is not there."""
    missing = Refusal("library", module, "not installed", f"pip install {install}")
    return lambda request: () if find_spec(module) else [missing]


def only(*, dtypes: Sequence[torch.dtype] = (), gradient: bool = True, **options: Any) -> Reasons:
    """Why it cannot serve another dtype than these, a gradient, or other values of the op's
    options."""

    def reasons(request: Request) -> Iterator[Refusal]:
        if dtypes and request.dtype not in dtypes:
            served = ", ".join(map(name_of, dtypes))
            yield Refusal("dtype", served, name_of(request.dtype), f"--dtypes {served}")
        if request.grad and not gradient:
            yield Refusal(
                "grad", "a forward alone", "one with its gradient", "leave --backward out"
            )
        for name, value in options.items():
            have = request.options.get(name, value)
            if have != value:
                yield Refusal(
                    "option", f"{name}={value}", f"{name}={have}", "its other cases have it"
                )

    return lambda request: [*reasons(request)]


def first_of(*several: Reasons) -> Reasons:
    """The first reasons that there are: of what is not installed nobody asks the rest."""
    return lambda request: next(filter(None, (reasons(request) for reasons in several)), ())


def _found(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _liger_rms_norm(x: Tensor, w: Tensor, eps: float) -> Callable[[], Tensor]:
    rms_norm = _found("liger_kernel.transformers.functional", "liger_rms_norm")
    return partial(rms_norm, x, w, eps, in_place=False)


def _liger_layer_norm(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Callable[[], Tensor]:
    return partial(_found("liger_kernel.transformers.functional", "liger_layer_norm"), x, w, b, eps)


def _apex_rms_norm(x: Tensor, w: Tensor, eps: float) -> Callable[[], Tensor]:
    norm = _found("apex.normalization.fused_layer_norm", "fused_rms_norm_affine")
    return partial(norm, x, w, w.shape, eps)


def _apex_layer_norm(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Callable[[], Tensor]:
    norm = _found("apex.normalization.fused_layer_norm", "fused_layer_norm_affine")
    return partial(norm, x, w, b, w.shape, eps)


def _batched(spans: Tensor, *tensors: Tensor) -> list[Tensor]:
    """[rows, heads, width] of sequences of one length as [sequences, length, heads, width]."""
    return [t.unflatten(0, (spans.shape[0], -1)) for t in tensors]


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, *_: Any) -> Callable[[], Any]:
    attend = _found("flash_attn", "flash_attn_func")
    return lambda: attend(*_batched(spans, q, k, v), causal=True).flatten(0, 1)


def _xformers_attention(
    q: Tensor, k: Tensor, v: Tensor, spans: Tensor, *_: Any
) -> Callable[[], Any]:
    attend = _found("xformers.ops", "memory_efficient_attention")
    causal = _found("xformers.ops.fmha.attn_bias", "LowerTriangularFromBottomRightMask")()
    return lambda: attend(*_batched(spans, q, k, v), attn_bias=causal).flatten(0, 1)


def _int8_product(x: Tensor, w: Tensor, scales: Tensor, *_: Any) -> Callable[[], Tensor]:
    """torch's own weight-only product; its scales have x's dtype."""
    return partial(torch._weight_int8pack_mm, x, w, scales.squeeze(-1).to(x.dtype))


def _grouped_mm(x: Tensor, w: Tensor, ends: Tensor, *_: Any) -> Callable[[], Tensor]:
    """torch's own for experts, which takes the ends in 32 bits."""
    return partial(_found("torch", "_grouped_mm"), x, w.mT, offs=ends.int())


_LIGER = installed("liger_kernel", "liger-kernel")
_APEX = installed("apex", "apex, from its sources")
_FLASH = first_of(installed("flash_attn", "flash-attn"), only(dtypes=HALVES))
_XFORMERS = first_of(installed("xformers", "xformers"), only(dtypes=HALVES))

LIBRARIES = (
    Peer("rms_norm", "liger-kernel", _liger_rms_norm, _LIGER),
    Peer("rms_norm", "apex", _apex_rms_norm, _APEX),
    Peer("layer_norm", "liger-kernel", _liger_layer_norm, _LIGER),
    Peer("layer_norm", "apex", _apex_layer_norm, _APEX),
    Peer("attention", "flash-attn", _flash_attention, _FLASH),
    Peer("attention", "xformers", _xformers_attention, _XFORMERS),
    Peer("grouped_linear", "torch _grouped_mm", _grouped_mm, only(act=None)),
    Peer("quantized_linear", "torch int8pack_mm", _int8_product, only(gradient=False, bits=8)),
)
