"""Memory figures: bytes of this device, moving with its tensors. Pinned host memory."""

from __future__ import annotations

import gc
import mmap

import torch

from accel.accelerator import Accelerator
from accel_conformance.case import Evidence
from accel_conformance.suite.accelerator.lacking import lacks

MEBI = 1 << 20
SIZE = 32 * MEBI

# capability -> the figures it is for
FIGURES = {
    "memory_stats": ("memory_allocated", "memory_reserved"),
    "peak_memory_stats": ("max_memory_allocated", "max_memory_reserved"),
    "memory_info": ("total_memory", "available_memory"),
}


def figures_are_bytes(acc: Accelerator, seen: Evidence) -> None:
    claimed = [ability for ability in FIGURES if acc.supports(ability)]
    if not claimed:
        lacks(acc, next(iter(FIGURES)), seen)
    for name in (name for ability in claimed for name in FIGURES[ability]):
        for index in (None, acc.current_device()):
            value = getattr(acc, name)(index)
            right = type(value) is int and value >= 0
            seen.expect("types", right, f"{name}({index}) is {value!r}, no count of bytes")


def allocated_moves_with_tensors(acc: Accelerator, seen: Evidence) -> None:
    """Untouched memory counts too: a tensor is held whether or not its pages were written."""
    if lacks(acc, "memory_stats", seen):
        return
    before = _allocated(acc)
    tensor = _take(acc)
    held = _allocated(acc)
    reserved = acc.memory_reserved()
    del tensor
    after = _allocated(acc)
    seen.expect("memory", held - before >= SIZE, f"{SIZE} bytes moved it by {held - before}")
    seen.expect("memory", held - before < 2 * SIZE, f"{SIZE} bytes moved it by {held - before}")
    seen.expect("memory", after == before, f"{after - before} bytes are left after freeing")
    seen.expect("memory", reserved >= held, f"reserved {reserved} is below allocated {held}")


def allocated_is_of_this_device(acc: Accelerator, seen: Evidence) -> None:
    """Memory of the process that no tensor holds is somebody else's."""
    if lacks(acc, "memory_stats", seen):
        return
    before = _allocated(acc)
    elsewhere = mmap.mmap(-1, SIZE)  # of the system, not from what the process has and freed ...
    elsewhere.write(bytes(SIZE))  # ... and touched, without which it is none
    moved = _allocated(acc) - before
    seen.expect("memory", moved == 0, f"{len(elsewhere)} bytes of Python's moved it by {moved}")
    others = [i for i in range(acc.device_count()) if i != acc.current_device()]
    figures = [acc.memory_allocated(index) for index in others]
    held = _take(acc)
    same = figures == [acc.memory_allocated(index) for index in others]
    seen.expect("memory", same, f"{held.nbytes} bytes of one device moved another's figures")


def peak_holds_and_resets(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "peak_memory_stats", seen):
        return
    held = _take(acc)
    for reset in (acc.reset_peak_memory_stats, acc.reset_max_memory_allocated):
        reset()
        before = _allocated(acc)
        _take(acc)
        peak = acc.max_memory_allocated()
        says = f"after {SIZE} bytes came and went, {peak - before} above what was held"
        seen.expect("memory", peak - before >= SIZE, says)
        reset()
        now, peak = _allocated(acc), acc.max_memory_allocated()
        says = f"after {reset.__name__}() the peak is {peak}, held are {now}"
        seen.expect("memory", peak == now >= held.nbytes, says)


def stats_carry_torchs_names(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "memory_stats", seen):
        return
    held: list[torch.Tensor] = []
    for _ in range(2):
        stats = acc.memory_stats()
        if seen.expect("types", isinstance(stats, dict), f"memory_stats() is {stats!r:.80}"):
            found, now = stats.get("allocated_bytes.all.current"), _allocated(acc)
            says = f"allocated_bytes.all.current is {found}, memory_allocated() {now}"
            seen.expect("memory", found == now, says)
        held.append(_take(acc))
    if acc.supports("peak_memory_stats"):
        held.pop()
        for _ in range(2):  # with a peak above what is held, and where it was reset
            found = acc.memory_stats().get("allocated_bytes.all.peak")
            says = f"allocated_bytes.all.peak is {found}, the peak {acc.max_memory_allocated()}"
            seen.expect("memory", found == acc.max_memory_allocated(), says)
            acc.reset_peak_memory_stats()


def free_is_part_of_total(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "memory_info", seen):
        return
    total, free = acc.total_memory(), acc.available_memory()
    seen.expect("memory", 0 < free <= total, f"{free} bytes free of {total}")
    whole = acc.properties().total_memory
    seen.expect("memory", total <= whole, f"{total} bytes usable of {whole} there are")


def cache_empties(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "memory_stats", seen):
        return
    _take(acc)
    before = acc.memory_reserved()
    acc.empty_cache()
    after = acc.memory_reserved()
    seen.expect("memory", after <= before, f"empty_cache() raised reserved by {after - before}")


def pageable_memory_is_not_pinned(acc: Accelerator, seen: Evidence) -> None:
    plain = torch.arange(1000.0)
    pinned = acc.is_pinned(plain)
    seen.expect("pinning", pinned is False, f"is_pinned() of pageable memory is {pinned!r}")
    same = acc.unpin_memory(plain) is plain
    seen.expect("pinning", same, "unpin_memory() copies what is not pinned")


def pinned_memory_is_pinned(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "pinned_memory", seen):
        return
    plain = torch.arange(1000.0)
    pinned = acc.pin_memory(plain)
    seen.expect("pinning", acc.is_pinned(pinned) is True, "is_pinned() denies pin_memory()")
    seen.expect("pinning", torch.equal(pinned, plain), "pin_memory() changed the values")
    seen.expect("pinning", acc.pin_memory(pinned) is pinned, "pinned memory is pinned again")
    back = acc.unpin_memory(pinned)
    free = not acc.is_pinned(back) and torch.equal(back, plain)
    seen.expect("pinning", free, "unpin_memory() gives pinned memory or other values")


def _allocated(acc: Accelerator) -> int:
    gc.collect()
    acc.synchronize()
    return acc.memory_allocated()


def _take(acc: Accelerator) -> torch.Tensor:
    return torch.empty(SIZE, dtype=torch.uint8, device=acc.device())


CHECKS = (
    figures_are_bytes,
    allocated_moves_with_tensors,
    allocated_is_of_this_device,
    peak_holds_and_resets,
    stats_carry_torchs_names,
    free_is_part_of_total,
    cache_empties,
    pageable_memory_is_not_pinned,
    pinned_memory_is_pinned,
)
