"""accel's plugin for the host processor."""

from __future__ import annotations

from collections.abc import Sequence

import accel
from accel_cpu import __version__

ACCEL_API = "1.0"


def probe() -> list[accel.Refusal]:
    """No reasons against it: whoever asks is running on a host processor."""
    return []


@accel.hookimpl
def accel_backend() -> accel.Backend:
    return accel.Backend(
        name="cpu",
        vendor="accel",
        device_type="cpu",
        version=__version__,
        rank=0,
        probe=probe,
        accelerator="accel_cpu.accelerator:CpuAccelerator",
        host=True,
        variables=("ACCEL_CPU_ISA",),
    )


@accel.hookimpl
def accel_op_builders() -> Sequence[type[accel.OpBuilder]]:
    from accel_cpu.builders import LinearBuilder, TilingBuilder, TransformerBuilder

    return [LinearBuilder, TilingBuilder, TransformerBuilder]
