"""accel's plugin for NVIDIA and AMD GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import accel
from accel_cuda import __version__
from accel_cuda.probe import probe

ACCEL_API = "1.0"


@accel.hookimpl
def accel_backend() -> accel.Backend:
    return accel.Backend(
        name="cuda",
        vendor="AMD" if torch.version.hip else "NVIDIA",
        device_type="cuda",
        version=__version__,
        rank=100,
        probe=probe,
        accelerator="accel_cuda.accelerator:CudaAccelerator",
        caveat="not run on hardware: no GPU has run it yet",
    )


@accel.hookimpl
def accel_op_builders() -> Sequence[type[accel.OpBuilder]]:
    from accel_cuda import native
    from accel_cuda.builders import LinearBuilder, TilingBuilder, TransformerBuilder

    return [LinearBuilder, TilingBuilder, TransformerBuilder, native.TransformerBuilder]
