"""linear, rms_norm and rotary through Intel's extension for PyTorch (IPEX), 2.8 for torch 2.8.

Importing it replaces some of torch's own operations in the whole process: sums, means, matmul and
layer_norm among others (``torch._C._dispatch_dump("aten::mean.dim")`` tells). So nothing of it is
imported before one of these was chosen, and their priorities are below eager torch's: they serve
who asks for them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor

from accel import Impl, Refusal, Request
from accel.contracts import rotary as contract
from accel_cpu import onednn
from accel_cpu.packing import packed

ID = "accel_cpu.ipex"
_DISTRIBUTION = "intel-extension-for-pytorch"
_EVERY = frozenset({torch.float32, torch.bfloat16, torch.float16})

IMPLS = {
    # Of fp16 its products refuse on most processors, with an error of oneDNN's.
    "linear": Impl("linear", ID, _EVERY - {torch.float16}, priority=4),
    "rms_norm": Impl("rms_norm", ID, _EVERY, priority=4),
    "rotary": Impl("rotary", ID, _EVERY, priority=4),
}


def reasons(request: Request) -> list[Refusal]:
    """Why it cannot serve, told without importing it."""
    return refusals() or (onednn.reasons(request) if request.op == "linear" else [])


def refusals(_: Request | None = None) -> list[Refusal]:
    """Why it cannot be imported here, whatever is asked."""
    refused = _refused()
    return [] if refused is None else [refused]


def load(impl: Impl) -> Callable[..., Any]:
    """The kernel, after the import."""
    import_module(_DISTRIBUTION.replace("-", "_"))
    return _KERNELS[impl.op]


@cache
def _refused() -> Refusal | None:
    """Why it cannot be imported here. Where torch or the processor do not suit it, its import ends
    the process."""
    remedy = "pip install accel-cpu[ipex], or let accel_cpu.native serve"
    try:
        version = metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return Refusal("library", _DISTRIBUTION, "not installed", remedy)
    wanted = ".".join(version.split(".")[:2])
    if torch.__version__.split(".")[:2] != wanted.split("."):
        have = f"torch {torch.__version__} beside {_DISTRIBUTION} {version}"
        return Refusal("version", f"torch {wanted} for it", have, remedy)
    if torch.cpu._is_avx2_supported():
        return None
    return Refusal("processor", "one with AVX2", "one without", "let accel_cpu.native serve")


def _linear(
    x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out_dtype: torch.dtype | None
) -> Tensor:
    if x.numel() == 0 or w.numel() == 0:  # oneDNN packs no empty weight
        return onednn.of_nothing(x, w, b)
    # It holds the bias too, and reads no other; memory of both is its context's.
    context = packed(_pack, x.numel() // x.shape[-1], w, b)
    product = torch.ops.torch_ipex.ipex_linear
    return product(x, x.new_empty(0), None, context.get_data_handle(), w.shape[0])  # type: ignore[no-any-return]


def _pack(rows: int, w: Tensor, b: Tensor | None) -> Any:
    bias = None if b is None else b.detach().contiguous()
    return torch.ops.ipex_prepack.linear_prepack(w.detach(), bias, rows)


def _rms_norm(x: Tensor, w: Tensor | None, eps: float) -> Tensor:
    # It reads a weight as if it had no gaps and lay where x does.
    weight = x.new_ones(x.shape[-1]) if w is None else w.to(x.device).contiguous()
    return torch.ops.torch_ipex.rmsnorm(x, weight, eps)  # type: ignore[no-any-return]


def _rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    r = cos.shape[-1]
    if x.numel() == 0 or r == 0:
        return x.clone()
    # Side by side in bf16 it turns whole vectors of pairs only, and leaves the others unwritten.
    apart = interleaved and x.dtype is torch.bfloat16
    if apart:
        first, second = contract.split(x, r, True)
        x = contract.join(first, second, x[..., 2 * r :], False)
    side_by_side = interleaved and not apart
    # One sequence of rows, each with a position and so a line of the table of its own.
    rows = x.reshape(1, -1, *x.shape[-2:]).contiguous()
    table = torch.cat((sin.reshape(-1, r), cos.reshape(-1, r)), 1)
    positions = torch.arange(rows.shape[1]).unsqueeze(0)
    turn = torch.ops.torch_ipex.rotary_position_embedding
    distance = 1 if side_by_side else r
    y = turn(rows, table, positions, *x.shape[-2:], distance, 2 * r)[0].reshape(x.shape)
    if apart:
        first, second = contract.split(y, r, False)
        y = contract.join(first, second, y[..., 2 * r :], True)
    return y  # type: ignore[no-any-return]


_KERNELS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "rms_norm": _rms_norm,
    "rotary": _rotary,
}
