"""linear through oneDNN with the weight packed, as torch's own inductor uses it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from accel import Impl, Refusal, Request
from accel_cpu.packing import packed

ID = "accel_cpu.onednn"
_EVERY = frozenset({torch.float32, torch.bfloat16, torch.float16})
# Below eager torch: it packs the weight at every call unless the user froze the weights.
IMPL = Impl("linear", ID, _EVERY, priority=5)


def load(impl: Impl) -> Callable[..., Any]:
    return linear


def linear(
    x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out_dtype: torch.dtype | None
) -> Tensor:
    k, n = x.shape[-1], w.shape[0]
    if x.numel() == 0 or w.numel() == 0:  # oneDNN packs no empty weight
        return of_nothing(x, w, b)
    rows = x.reshape(-1, k)
    weight = packed(_pack, rows.shape[0], w)
    # It reads a bias as if it had no gaps (torch 2.13).
    bias = None if b is None else b.contiguous()
    y = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return y.reshape(*x.shape[:-1], n)  # type: ignore[no-any-return]


def of_nothing(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """The product without any: of no rows, no columns, or no elements to sum."""
    columns = x.new_zeros(w.shape[0]) if b is None else b
    return columns.expand(*x.shape[:-1], w.shape[0]).clone()


def _pack(rows: int, w: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(w.detach().contiguous(), rows)  # type: ignore[no-any-return]


def reasons(request: Request) -> list[Refusal]:
    """What torch's binding of oneDNN cannot do here."""
    act = request.options.get("act")
    if act is not None:
        # Fused by oneDNN (torch 2.13), relu turns NaN into 0 and gelu an infinity into NaN.
        return [Refusal("act", "no activation", act, "use accel_cpu.native")]
    out = request.options.get("out_dtype")
    if out not in (None, request.dtype):
        want = str(request.dtype).removeprefix("torch.")
        return [Refusal("out_dtype", want, str(out).removeprefix("torch."), "use accel_cpu.native")]
    refused = _torch_refuses(request.dtype)
    if refused is None:
        return []
    want = f"a processor on which oneDNN computes in {str(request.dtype).removeprefix('torch.')}"
    return [Refusal("processor", want, refused, "use accel_cpu.native")]


@cache
def _torch_refuses(dtype: torch.dtype) -> str | None:
    """torch's own reason why oneDNN cannot serve a dtype here; None if it can."""
    if not torch.backends.mkldnn.is_available():
        return "a torch built without oneDNN"
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(1, 1, dtype=dtype), 1)
    except (RuntimeError, AttributeError) as error:
        return str(error).splitlines()[0]
    return None
