"""Memory that is short: how that is told, and what can be given back."""

from __future__ import annotations

import gc

import torch

from accel.engine.cache import KVCache
from accel.errors import AccelError

# Of torch's allocators: the devices', and the host's, which has no class of error for it.
_SAYS = ("out of memory", "can't allocate memory")


def is_short(error: BaseException) -> bool:
    """True if memory could not be had; not if more was asked for than was permitted."""
    if isinstance(error, AccelError):
        return False
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS)
    return told or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def give_back(cache: KVCache, device: torch.device) -> None:
    """The KV cache, and what is kept for later use."""
    cache.release()
    gc.collect()
    getattr(torch.get_device_module(device), "empty_cache", lambda: None)()
