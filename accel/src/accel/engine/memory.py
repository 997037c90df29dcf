"""Memory that is short: how that is told, and what can be given back."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from accel.engine.cache import KVCache
from accel.errors import AccelError, CapacityError

T = TypeVar("T")
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


def again_if_short(
    work: Callable[[], T], cache: KVCache, device: torch.device, may_again: Callable[[], bool]
) -> T:
    """What a rollout's ``work`` gives: once more where memory was short, by what can be given back,
    unless it may not. CapacityError if it stays short."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_short(error):
            raise
        if not may_again():
            cache.release()
            raise _short(error, "once") from error
    # Out here nothing holds what the first time took.
    give_back(cache, device)
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_short(error):
            raise
        cache.release()
        raise _short(error, "twice, though what was kept was given back") from error


def _short(error: BaseException, tried: str) -> CapacityError:
    return CapacityError(
        f"a rollout found too little memory, {tried}: {error}; free some, ask for fewer rows or "
        "tokens, or set kv_cache_bytes, and it is made in several waves"
    )
