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
        caveat="not run on hardware: no GPU has run it yet",
    )


@accel.hookimpl
def accel_op_builders() -> Sequence[type[accel.OpBuilder]]:
    from accel_xpu import ipex
    from accel_xpu.builders import LinearBuilder, TilingBuilder, TransformerBuilder

    # The first of a family is the one that is got by its name.
    return [LinearBuilder, TilingBuilder, TransformerBuilder, ipex.TransformerBuilder]
