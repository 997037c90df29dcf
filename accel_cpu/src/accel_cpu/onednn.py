"""linear through oneDNN with the weight packed, as torch's own inductor uses it.

Packing costs more than a small product, and a packed copy goes stale when the weight changes in a
way nobody can see (``.data``). So a copy is only kept where the user vouches for the weights::

    with accel_cpu.frozen_weights():
        ...                                # weights do not change in here
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor

from accel import Refusal, Request

_Key = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]
# The weight is kept beside its packed copy, so that its address is not given to another.
_frozen: ContextVar[dict[_Key, tuple[Tensor, Tensor]] | None] = ContextVar(
    "accel_cpu_frozen_weights", default=None
)


@contextmanager
def frozen_weights() -> Iterator[None]:
    """Keep packed copies of the weights used in the body; dropped at its end (may be nested).

    The caller promises that no weight changes inside. For this thread or task only.
    """
    if _frozen.get() is not None:
        yield
        return
    token = _frozen.set({})
    try:
        yield
    finally:
        _frozen.reset(token)


def linear(
    x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out_dtype: torch.dtype | None
) -> Tensor:
    k, n = x.shape[-1], w.shape[0]
    if k == 0 or x.numel() == 0 or n == 0:  # oneDNN packs no empty weight
        none = x.new_zeros(n) if b is None else b
        return none.expand(*x.shape[:-1], n).clone()
    rows = x.reshape(-1, k)
    packed = _packed(w, rows.shape[0])
    # It reads a bias as if it had no gaps (torch 2.13).
    bias = None if b is None else b.contiguous()
    y = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return y.reshape(*x.shape[:-1], n)  # type: ignore[no-any-return]


def _packed(w: Tensor, rows: int) -> Tensor:
    frozen = _frozen.get()
    if frozen is None:
        return _pack(w, rows)
    key = (w.data_ptr(), tuple(w.shape), tuple(w.stride()), w.dtype)
    if key not in frozen:
        frozen[key] = (w, _pack(w, rows))
    return frozen[key][1]


def _pack(w: Tensor, rows: int) -> Tensor:
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
