"""Statistics: how often, how long and how much, per phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Listener = Callable[[str, float], None]


class Stats:
    """Totals per phase, the device synchronised before each look at the clock."""

    def __init__(self, device: torch.device, listener: Listener | None = None) -> None:
        self._device = device
        self._listener = listener
        self._totals: dict[str, dict[str, float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[dict[str, float]]:
        """Time the body; add counts of your own to the dict. An aborted body is not counted."""
        counts: dict[str, float] = {}
        began = self.clock()
        yield counts
        seconds = self.clock() - began
        totals = self._totals.setdefault(name, {"calls": 0, "seconds": 0.0})
        for key, value in {"calls": 1, "seconds": seconds, **counts}.items():
            totals[key] = totals.get(key, 0) + value
        if self._listener is not None:
            self._listener(name, seconds)

    def totals(self) -> dict[str, dict[str, float]]:
        """A copy, with ``tokens_per_second`` where tokens were counted."""
        found = {name: dict(totals) for name, totals in self._totals.items()}
        for totals in found.values():
            if totals.get("tokens") and totals["seconds"]:
                totals["tokens_per_second"] = totals["tokens"] / totals["seconds"]
        return found

    def clock(self) -> float:
        """Seconds since some moment, when all that was asked of the device is done."""
        torch.get_device_module(self._device).synchronize()
        return time.perf_counter()
