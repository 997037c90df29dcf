"""Timing contenders side by side: all of them in every round, in an order drawn anew.

A machine that drifts, throttles or is shared then hits all alike, and the ratio of two is taken
within each round, never between the medians of different minutes.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from accel.accelerator import Accelerator

Loop = Callable[[int], object]  # called with the number of calls to make in a row

ROUND = 0.01  # seconds: of one contender in a round, so that the step of the clock is small
PATIENCE = 1.0  # seconds in all of one contender of one case


@dataclass(frozen=True)
class Spread:
    """The median of some figures, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        if len(figures) == 1:
            return cls(figures[0], figures[0], figures[0])
        low, median, high = statistics.quantiles(figures, n=4, method="inclusive")
        return cls(median, low, high)

    def to_dict(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high}


class Clock:
    """Seconds that calls take on an accelerator: between two of its events where it has them and
    works on after a call has returned, else on the host, waiting for the device at both ends."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.by_events = not accelerator.use_host_timers() and accelerator.supports("event_timing")

    @property
    def method(self) -> str:
        return "the device's events" if self.by_events else "the host's clock, synchronized"

    def seconds(self, loop: Loop, repeats: int = 1) -> float:
        """The mean of ``repeats`` calls in a row."""
        self.accelerator.synchronize()
        elapsed = self._by_events if self.by_events else self._on_host
        return elapsed(loop, repeats) / repeats

    def _by_events(self, loop: Loop, repeats: int) -> float:
        start, end = (self.accelerator.Event(enable_timing=True) for _ in range(2))
        start.record()
        loop(repeats)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def _on_host(self, loop: Loop, repeats: int) -> float:
        start = time.perf_counter()
        loop(repeats)
        self.accelerator.synchronize()
        return time.perf_counter() - start


def in_rounds(
    loops: Mapping[str, Loop], clock: Clock, rounds: int, patience: float = PATIENCE
) -> dict[str, list[float]]:
    """Seconds a call of each, round by round.

    Each has been called before. One that takes more than ``patience`` seconds in all takes part in
    the first rounds alone, at least in one; entry i of every list is of round i.
    """
    repeats, parts = {}, {}
    order, found = random.Random(0), {name: [] for name in loops}  # type: ignore[var-annotated]
    for name, loop in loops.items():
        once = max(clock.seconds(loop), 1e-7)
        repeats[name] = max(1, round(ROUND / once))
        parts[name] = max(1, min(rounds, int(patience / (once * repeats[name]))))
        if once > patience:  # that was its round
            parts[name], found[name] = 0, [once]
    with _undisturbed():
        for at in range(max(parts.values(), default=0)):
            names = [name for name in loops if at < parts[name]]
            order.shuffle(names)
            for name in names:
                found[name].append(clock.seconds(loops[name], repeats[name]))
    return found


def ratio(peer: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times faster ours is, of the rounds that both took part in."""
    return Spread.of([theirs / own for theirs, own in zip(peer, ours)])


@contextmanager
def _undisturbed() -> Iterator[None]:
    """The garbage collector waits, as in timeit."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
