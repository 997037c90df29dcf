"""Is there a GPU for torch.cuda? Answered without a device context, so that a fork after it works.

On Linux ``torch.cuda.is_available()`` is not asked: it starts the driver's API in this process,
after which no forked child can use a GPU.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

from accel import Refusal
from accel_cuda import nvml

ROOT = Path("/")  # of the file system, for tests

# Where NVIDIA's kernel driver shows: a GPU of its own, one under WSL, one of a Jetson board.
_NODES = ("dev/nvidiactl", "dev/nvidia[0-9]*", "dev/dxg", "dev/nvmap")

_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def probe() -> list[Refusal]:
    """The first reason why there is no GPU to use; none if there is one."""
    driver = _amd_driver if torch.version.hip else _nvidia_driver
    for refusal_of in (_torch, driver, _devices):
        refused = refusal_of()
        if refused is not None:
            return [refused]
    return []


def _torch() -> Refusal | None:
    if torch.version.cuda or torch.version.hip:
        return None
    want = "a torch built with CUDA or ROCm"
    # Some vendors' packages put their own device in place of torch.cuda.
    home = getattr(torch.cuda.is_available, "__module__", "") or "another package"
    if home != "torch.cuda" or torch.cuda.is_available():
        have = f"torch {torch.__version__} without, whose torch.cuda is played by {home}"
        return Refusal("spoof", want, have, "use the accel backend of the device behind it")
    have = f"torch {torch.__version__}, built without"
    return Refusal("torch", want, have, "install one: https://pytorch.org/get-started/locally")


def _nvidia_driver() -> Refusal | None:
    if not _can_fork():
        return None
    nodes = [node for pattern in _NODES for node in ROOT.glob(pattern)]
    want = "an NVIDIA driver"
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        if not nodes:
            have = "none: neither libcuda.so.1 nor a device file /dev/nvidia*"
            return Refusal("driver", want, have, "install the driver")
        have = f"device files, but its library cannot be loaded: {error}"
        return Refusal("driver", want, have, "install the driver's libraries here")
    if not nodes:
        have = "its library libcuda.so.1, but no device file /dev/nvidia*"
        remedy = "load the kernel module; in a container, hand it the GPU (--gpus all)"
        return Refusal("driver", want, have, remedy)
    try:
        nvml.driver_version()
    except nvml.NvmlError as error:
        return Refusal("driver", "an NVIDIA driver that works", str(error), "reinstall or reboot")
    return _too_old(cuda)


def _too_old(cuda: ctypes.CDLL) -> Refusal | None:
    """A driver runs programs for the CUDA of its own major version and older ones."""
    version = ctypes.c_int()
    wanted = int(str(torch.version.cuda).split(".")[0])
    if cuda.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value // 1000 >= wanted:
        return None
    have = f"one for CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    remedy = "update the driver, or install a torch for an older CUDA"
    return Refusal("driver", f"a driver for CUDA {torch.version.cuda}", have, remedy)


def _amd_driver() -> Refusal | None:
    if not _can_fork():
        return None
    node = ROOT / "dev/kfd"
    want = "AMD's GPU driver"
    if not node.exists():
        remedy = "install the driver; in a container, hand it /dev/kfd and /dev/dri"
        return Refusal("driver", want, "none: no device file /dev/kfd", remedy)
    if not os.access(node, os.R_OK | os.W_OK):
        have = "/dev/kfd, which this user may not open"
        return Refusal("driver", want, have, "add the user to the groups render and video")
    return None


def _devices() -> Refusal | None:
    count = _count()
    if count is None or count > 0:
        return None
    hiding = [f"{name}={os.environ[name]!r}" for name in _VARIABLES if name in os.environ]
    if hiding:
        have = f"none that {' and '.join(hiding)} leaves visible"
        return Refusal("device", "a visible GPU", have, "name one of them there, or unset it")
    remedy = f"see whether {'rocm-smi' if torch.version.hip else 'nvidia-smi'} lists one"
    return Refusal("device", "a GPU", "a driver that sees none", remedy)


def _count() -> int | None:
    """How many GPUs are visible; None if that cannot be told without starting the driver's API,
    as for parts of a GPU (MIG) or without the management library. Then its use will tell."""
    if not _can_fork():
        return torch.cuda.device_count()
    # torch's public device_count() starts the API where these two answer "cannot tell", below 0.
    asked = "_device_count_amdsmi" if torch.version.hip else "_device_count_nvml"
    count = getattr(torch.cuda, asked, lambda: -1)()
    return count if count >= 0 else None


def _can_fork() -> bool:
    """Linux; elsewhere (Windows) there is no fork to spare, and torch is simply asked."""
    return sys.platform == "linux"
