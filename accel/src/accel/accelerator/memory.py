"""Device memory of an accelerator: figures in bytes, true to their names; pinned host memory."""

from __future__ import annotations

from typing import Any

import torch

from accel.accelerator.capabilities import Capable


class Memory(Capable):
    """Every figure is in bytes and for one device (``None``: the current one)."""

    def memory_allocated(self, device_index: int | None = None) -> int:
        """Bytes held by live tensors."""
        return int(self._ask("memory_allocated", device_index, capability="memory_stats"))

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        """The highest :meth:`memory_allocated` since start or the last reset, seen or not."""
        return int(self._ask("max_memory_allocated", device_index, capability="peak_memory_stats"))

    def memory_reserved(self, device_index: int | None = None) -> int:
        """Bytes the allocator holds from the system, live tensors and its cache together."""
        return int(self._ask("memory_reserved", device_index, capability="memory_stats"))

    def max_memory_reserved(self, device_index: int | None = None) -> int:
        """The highest :meth:`memory_reserved` since start or the last reset."""
        return int(self._ask("max_memory_reserved", device_index, capability="peak_memory_stats"))

    def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
        """Set the peaks to what is held now."""
        self._ask("reset_peak_memory_stats", device_index, capability="peak_memory_stats")

    def reset_max_memory_allocated(self, device_index: int | None = None) -> None:
        """DeepSpeed's name for :meth:`reset_peak_memory_stats` (torch resets all peaks at once)."""
        self.reset_peak_memory_stats(device_index)

    def memory_stats(self, device_index: int | None = None) -> dict[str, Any]:
        """The allocator's counters under torch's names (``allocated_bytes.all.peak``, ...)."""
        return dict(self._ask("memory_stats", device_index, capability="memory_stats"))

    def total_memory(self, device_index: int | None = None) -> int:
        """Bytes of memory this process may use on the device."""
        return int(self._memory_info(device_index)[1])

    def available_memory(self, device_index: int | None = None) -> int:
        """Bytes of it that are free now."""
        return int(self._memory_info(device_index)[0])

    def _memory_info(self, device_index: int | None) -> tuple[int, int]:
        """(free, total) bytes."""
        return self._ask("mem_get_info", device_index, capability="memory_info")  # type: ignore[no-any-return]

    def empty_cache(self) -> None:
        """Give cached memory that no tensor holds back to the system."""
        self._ask("empty_cache")

    def pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a host tensor in page-locked memory (the tensor itself if it is pinned)."""
        self.require("pinned_memory")
        return tensor.pin_memory()

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """True if the tensor lies in page-locked memory."""
        return tensor.is_pinned()

    def unpin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a pinned tensor in pageable memory (the tensor itself if it is not pinned)."""
        return tensor.clone() if self.is_pinned(tensor) else tensor
