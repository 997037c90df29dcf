"""Bytes of host memory: what this process may use, what is free, and giving some back.

None stands for a figure that the system does not tell; the accelerator then refuses it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from accel.errors import UnsupportedCapability
from accel_cpu import cgroup
from accel_cpu.cgroup import ROOT


def total(root: Path = ROOT) -> int | None:
    """Physical memory, or the limit of the process's control groups where that is lower."""
    return _lower(_machine(root)[0], cgroup.memory_limit(root))


def free_and_total(root: Path = ROOT) -> tuple[int, int] | None:
    """(what can be taken without swapping, :func:`total`); None if either is not told."""
    whole, free = total(root), _lower(_machine(root)[1], cgroup.memory_left(root))
    return None if whole is None or free is None else (min(free, whole), whole)


def give_back() -> None:
    """Have the C library return the free memory it keeps to the system.

    UnsupportedCapability where it has no call for that (it is glibc's ``malloc_trim``).
    """
    libc = None if sys.platform == "win32" else ctypes.CDLL(None)
    trim = getattr(libc, "malloc_trim", None)
    if trim is None:
        raise UnsupportedCapability(
            f"the C library on {sys.platform} cannot be told to give free memory back: "
            "it has no malloc_trim"
        )
    trim(ctypes.c_size_t(0))


def _lower(machine: int | None, groups: int | None) -> int | None:
    """The machine's figure, if it is told, or the groups' where that is lower."""
    return machine if machine is None or groups is None else min(machine, groups)


def _machine(root: Path) -> tuple[int | None, int | None]:
    """(physical, available) bytes."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return _windows() if sys.platform == "win32" else (_sysconf(), None)
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024


def _sysconf() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


class _MemoryStatus(ctypes.Structure):
    """Windows' MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("rest", ctypes.c_uint64 * 5),
    )


def _windows() -> tuple[int | None, int | None]:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined,unused-ignore]
        return None, None
    return status.total, status.available
