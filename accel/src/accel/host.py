"""The host's memory, whatever torch calls the processor that it belongs to."""

from __future__ import annotations

import torch
from torch import Tensor

HOST = torch.UntypedStorage(0).device.type
"""torch's name for the host processor."""


def in_host_memory(tensor: Tensor) -> bool:
    """True if reading a value of ``tensor`` copies nothing and waits for no device."""
    return tensor.device.type == HOST
