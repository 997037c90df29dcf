"""accel's plugin for Intel GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import accel
from accel_xpu import __version__
from accel_xpu.probe import probe

ACCEL_API = "1.0"


@accel.hookimpl
def accel_backend() -> accel.Backend:
    return accel.Backend(
        name="xpu",
        vendor="Intel",
        device_type="xpu",
        version=__version__,
        rank=90,
        probe=probe,
        accelerator="accel_xpu.accelerator:XpuAccelerator",
    )


@accel.hookimpl
def accel_op_builders() -> Sequence[type[accel.OpBuilder]]:
    from accel_xpu import ipex

    return [ipex.TransformerBuilder]
