"""The right backend that faults are planted in, as the suite's own tests use it."""

from accel_conformance.faults.host import (
    ATTENTION,
    LINEAR,
    LOGPROB,
    NORM,
    TILED,
    HostAccelerator,
    linear_one_by_one,
    logprob_by_row,
    plugin,
    row_by_row,
)

__all__ = [
    "ATTENTION",
    "LINEAR",
    "LOGPROB",
    "NORM",
    "TILED",
    "HostAccelerator",
    "linear_one_by_one",
    "logprob_by_row",
    "plugin",
    "row_by_row",
]
