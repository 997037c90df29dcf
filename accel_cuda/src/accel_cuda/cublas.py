"""linear through torch's cuBLAS: which of its kernels serves depends on how many rows there are, so
rows vary with the shape."""

from __future__ import annotations

import torch
from torch import Tensor

from accel import Refusal, Request
from accel.torch_impls.linear import linear as torch_linear


def linear(
    x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out_dtype: torch.dtype | None
) -> Tensor:
    """TF32 only where the user has set ``torch.backends.cuda.matmul.allow_tf32``."""
    return torch_linear(x, w, b, act, out_dtype)


def reasons(request: Request) -> list[Refusal]:
    """What torch's binding of cuBLAS cannot do in one rounding."""
    act = request.options.get("act")
    if act is not None:
        return [Refusal("act", "no activation", act, "use accel_cuda.triton")]
    out = request.options.get("out_dtype")
    if out not in (None, request.dtype):
        want = str(request.dtype).removeprefix("torch.")
        have = str(out).removeprefix("torch.")
        return [Refusal("out_dtype", want, have, "use accel_cuda.triton")]
    return []
