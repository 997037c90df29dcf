"""NVML, the management library of NVIDIA's driver: asked without making a device context.

Its ``nvmlInit`` starts no GPU, and a process may fork after it.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"


class NvmlError(Exception):
    """NVML is there and says that something is wrong with the driver."""


def driver_version() -> str | None:
    """The driver's version, such as ``"580.65.06"``; None where NVML is not installed.

    Raises NvmlError with NVML's own words if it cannot talk to the driver.
    """
    nvml = _library()
    if nvml is None:
        return None
    _check(nvml, nvml.nvmlInit_v2())
    try:
        text = ctypes.create_string_buffer(96)
        _check(nvml, nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(96)))
        return text.value.decode()
    finally:
        nvml.nvmlShutdown()


@cache
def _library() -> ctypes.CDLL | None:
    try:
        nvml = ctypes.CDLL(_LIBRARY)
    except OSError:  # some containers and boards have a driver without it
        return None
    nvml.nvmlErrorString.restype = ctypes.c_char_p
    return nvml


def _check(nvml: ctypes.CDLL, code: int) -> None:
    if code != 0:
        raise NvmlError(f"NVML error {code}: {nvml.nvmlErrorString(code).decode()}")
