"""What the kernels cannot do, told without triton: claims and launches read it here.

A program of attention holds rows of queries, keys and values at once, and the gradient as many
again. With heads of this many bytes (256 in fp32, 512 in half precision) each fits into the 99 KiB
of shared memory of the smallest GPUs that take the tunings, and into the 64 KiB of gfx942
(``tests/triton/test_ahead.py``); of twice as many even an A100 has none left for the gradient.
"""

from __future__ import annotations

import torch

from accel.op_builder import Request
from accel.refusal import Refusal

HEAD_BYTES = 1024


def largest_head(dtype: torch.dtype) -> int:
    """How many elements a head may have, of queries, keys or values."""
    return HEAD_BYTES // dtype.itemsize


def head_refusals(request: Request) -> list[Refusal]:
    """Why attention cannot be served, alone or in a transformer layer: heads too large."""
    asked, most = request.options, largest_head(request.dtype)
    sizes = {name: asked.get(name) for name in ("head_size", "value_size")}
    hidden, heads = asked.get("hidden_size"), asked.get("heads")
    if hidden is not None and heads:
        sizes["head_size"] = hidden // heads
    want = f"heads of at most {most} elements in {str(request.dtype).removeprefix('torch.')}"
    remedy = f'accel.ops.use("{request.op}=torch", strict=False)'
    return [
        Refusal(name, want, str(size), remedy)
        for name, size in sizes.items()
        if size is not None and size > most
    ]
