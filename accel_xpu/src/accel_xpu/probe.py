"""Is there a GPU for torch.xpu? Answered without starting it, so that a fork after it works.

On Linux ``torch.xpu.is_available()`` is not asked: where it cannot count through the management
library it starts the SYCL runtime in this process, after which no forked child can use a GPU.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

from accel import Refusal

ROOT = Path("/")  # of the file system, for tests

_INTEL = "0x8086"
_DRIVER = "libze_intel_gpu.so.1"


def probe() -> list[Refusal]:
    """The first reason why there is no GPU to use; none if there is one."""
    for refusal_of in (_torch, _node, _driver, _devices):
        refused = refusal_of()
        if refused is not None:
            return [refused]
    return []


def _torch() -> Refusal | None:
    if torch.xpu._is_compiled():
        return None
    have = f"torch {torch.__version__}, built without"
    remedy = "install one: https://pytorch.org/docs/stable/notes/get_start_xpu.html"
    return Refusal("torch", "a torch built for XPU", have, remedy)


def _node() -> Refusal | None:
    """A device file of an Intel GPU that this user may open."""
    if not _can_fork() or (ROOT / "dev/dxg").exists():  # WSL has no render nodes
        return None
    nodes = {node: _vendor(node) for node in sorted((ROOT / "dev/dri").glob("renderD*"))}
    want = "an Intel GPU"
    if not nodes:
        remedy = "install its kernel driver; in a container, hand it /dev/dri"
        return Refusal("device", want, "no device file /dev/dri/renderD*", remedy)
    intel = [node for node, vendor in nodes.items() if vendor in (_INTEL, None)]
    if not intel:
        vendors = ", ".join(sorted(set(filter(None, nodes.values()))))
        have = f"only GPUs of other vendors (PCI {vendors})"
        return Refusal("device", want, have, "install the accel backend of theirs")
    if not any(os.access(node, os.R_OK | os.W_OK) for node in intel):
        have = f"/dev/dri/{intel[0].name}, which this user may not open"
        return Refusal("device", want, have, "add the user to the group render")
    return None


def _vendor(node: Path) -> str | None:
    """The PCI vendor behind a render node; None if the system does not tell."""
    try:
        return (ROOT / "sys/class/drm" / node.name / "device/vendor").read_text().strip()
    except OSError:
        return None


def _driver() -> Refusal | None:
    if not _can_fork():
        return None
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        remedy = "install Intel's compute runtime (package libze-intel-gpu1)"
        return Refusal("driver", "Intel's Level Zero GPU driver", str(error), remedy)
    return None


def _devices() -> Refusal | None:
    count = _count()
    if count is None or count > 0:
        return None
    mask = os.environ.get("ZE_AFFINITY_MASK")
    if mask is not None:
        have = f"none that ZE_AFFINITY_MASK={mask!r} leaves visible"
        return Refusal("device", "a visible GPU", have, "name one of them there, or unset it")
    return Refusal("device", "a GPU", "a driver that sees none", "see whether sycl-ls lists one")


def _count() -> int | None:
    """How many GPUs are visible; None if that cannot be told without starting the SYCL runtime,
    which takes the package ``pyzes`` and a torch that uses it. Then its use will tell."""
    if not _can_fork():
        return torch.xpu.device_count()
    # torch's public device_count() starts the runtime where this answers "cannot tell", below 0.
    count: int = getattr(torch.xpu, "_device_count_zes", lambda: -1)()
    return count if count >= 0 else None


def _can_fork() -> bool:
    """Linux; elsewhere (Windows) there is no fork to spare, and torch is simply asked."""
    return sys.platform == "linux"
