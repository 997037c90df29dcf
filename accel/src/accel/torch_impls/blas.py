"""linear by torch's own BLAS (cuBLAS, oneDNN) and nothing else, for devices where it is fast.

Which of its kernels serves depends on how many rows there are, so rows vary with the shape. TF32 is
used only where the user has asked torch for it.
"""

from __future__ import annotations

from accel.op_builder import Kernel, Request
from accel.refusal import Refusal
from accel.torch_impls.linear import linear

KERNEL = Kernel(linear)


def reasons(request: Request) -> list[Refusal]:
    """What torch's own cannot do in one rounding."""
    act, remedy = request.options.get("act"), "use another implementation"
    if act is not None:
        return [Refusal("act", "no activation", act, remedy)]
    out = request.options.get("out_dtype")
    if out not in (None, request.dtype):
        want, have = (str(dtype).removeprefix("torch.") for dtype in (request.dtype, out))
        return [Refusal("out_dtype", want, have, remedy)]
    return []
