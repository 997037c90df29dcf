"""The host's memory, whatever torch calls the processor that it belongs to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

HOST = torch.UntypedStorage(0).device.type
"""torch's name for the host processor."""


def in_host_memory(tensor: Tensor) -> bool:
    """True if reading a value of ``tensor`` copies nothing and waits for no device."""
    return tensor.device.type == HOST


def read(tensor: Tensor) -> Any:
    """``tensor.tolist()`` where what follows is decided by it, so that it cannot be recorded and
    replayed: :func:`reads` counts."""
    global _reads
    _reads += 1
    return tensor.tolist()


def reads() -> int:
    """How often that was so far, in this process. torch's own dispatcher does not see it."""
    return _reads


_reads = 0
