"""Facts about the host processor, from /proc and /sys; starts no process.

Where a system does not tell, the value is the word ``"unknown"``.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

from accel_cpu import cgroup
from accel_cpu.cgroup import ROOT

UNKNOWN = "unknown"

# Of a hundred flags, those that decide how fast and in which dtypes a kernel computes.
_ISA = re.compile(r"(sse4|avx|amx|asimd|sve|bf16).*|fma4?|f16c|neon|sme2?|i8mm|fphp")

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def name(root: Path = ROOT) -> str:
    """The model name, as the processor gives it."""
    return _cpuinfo(root).get("model name") or os.environ.get("PROCESSOR_IDENTIFIER") or UNKNOWN


def usable_cores() -> int:
    """Logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def details(root: Path = ROOT) -> dict[str, object]:
    """Further facts.

    ``architecture``    such as ``"x86_64"``
    ``logical_cores``   of the machine            ``physical_cores``  of the machine
    ``usable_cores``    that this process may run on
    ``cpu_quota``       processors' worth of time its control groups allow, or ``"none"``
    ``numa_nodes``      node -> its processors, as ``"0-3,8"``
    ``isa``             instruction sets, as the kernel names them
    ``torch_isa``       the one that torch's own kernels use
    ``caches``          such as ``"L1d"`` -> bytes, as the first processor sees them
    """
    quota = cgroup.cpu_quota(root)
    no_quota = "none" if (root / "proc/self/cgroup").exists() else UNKNOWN
    return {
        "architecture": platform.machine() or UNKNOWN,
        "logical_cores": os.cpu_count() or UNKNOWN,
        "physical_cores": _physical_cores(root) or UNKNOWN,
        "usable_cores": usable_cores(),
        "cpu_quota": no_quota if quota is None else quota,
        "numa_nodes": _numa_nodes(root) or UNKNOWN,
        "isa": _isa(root) or UNKNOWN,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "caches": _caches(root) or UNKNOWN,
    }


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo."""
    block = (_text(root / "proc/cpuinfo") or "").split("\n\n")[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _isa(root: Path) -> tuple[str, ...]:
    info = _cpuinfo(root)
    flags = (info.get("flags") or info.get("Features") or "").split()
    return tuple(flag for flag in flags if _ISA.fullmatch(flag))


def _physical_cores(root: Path) -> int:
    """Processors that share a core list the same siblings."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    return len({_text(file) for file in files})


def _numa_nodes(root: Path) -> dict[int, str]:
    files = (root / "sys/devices/system/node").glob("node[0-9]*/cpulist")
    nodes = {int(file.parent.name.removeprefix("node")): _text(file) or "" for file in files}
    return dict(sorted(nodes.items()))


def _caches(root: Path) -> dict[str, int]:
    caches = {}
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index[0-9]*")):
        level, kind, size = (_text(index / file) or "" for file in ("level", "type", "size"))
        if found := re.fullmatch(r"(\d+)([KMG]?)", size):
            letter = {"Data": "d", "Instruction": "i"}.get(kind, "")
            caches[f"L{level}{letter}"] = int(found[1]) * _UNITS[found[2]]
    return caches


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:
        return None
