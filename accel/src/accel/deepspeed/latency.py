"""Latency: where the time of an iteration went, by DeepSpeed's counting."""

from __future__ import annotations

from accel.engine.stats import Stats

_TRAINING = ("forward", "backward", "step")


class Latency:
    """An iteration lasts from one call of ``eval()`` to the next: rollouts, then training. Before
    the first call none has begun.

    ``samples``  answers made in the one that runs, by this process
    """

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._began: float | None = None
        self._before: dict[str, float] = {}
        self._all = {"e2e": 0.0, "samples": 0.0}
        self._last: dict[str, float] = {}
        self.samples = 0

    def turn(self) -> None:
        """One iteration ends here, if there is one, and another begins."""
        now, seconds = self._stats.clock(), self._seconds()
        if self._began is not None:
            self._last = self._iteration(now - self._began, seconds)
        self._began, self._before, self.samples = now, seconds, 0

    def found(self) -> dict[str, float]:
        """Of the last iteration that has ended; empty before."""
        return dict(self._last)

    def _iteration(self, e2e: float, seconds: dict[str, float]) -> dict[str, float]:
        spent = {name: total - self._before.get(name, 0.0) for name, total in seconds.items()}
        found = {
            "e2e": e2e,
            "gather": spent.get("gather", 0.0),
            "generate": spent.get("generate", 0.0),
            "training": sum(spent.get(name, 0.0) for name in _TRAINING),
        }
        found["others"] = e2e - found["generate"] - found["training"]
        self._all["e2e"] += e2e
        self._all["samples"] += self.samples
        if self.samples:
            found["samples"] = self.samples
            found["samples_per_second"] = self.samples / e2e
            found["average_samples_per_second"] = self._all["samples"] / self._all["e2e"]
        return found

    def _seconds(self) -> dict[str, float]:
        return {name: totals["seconds"] for name, totals in self._stats.totals().items()}
