"""Timing things side by side: in turn, in one run, so that a drifting machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def in_turn(
    calls: Mapping[str, Callable[[], object]], *, seconds: float = 0.6, rounds: int = 21,
    warm: bool = True,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds per call of each, ``rounds`` times each, taken in turn (A B C A B C ...).

    Each round of a call repeats it until about ``seconds / rounds`` have passed. Calls that take
    seconds get fewer rounds, three at least, so that they end within half a minute; of those that
    take so long that a first time costs nothing (not ``warm``) there are three and nothing before.
    """
    if not warm:
        return _rounds(calls, dict.fromkeys(calls, 1), 3)
    repeats, together = {}, 0.0
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        call()
        once = max(time.perf_counter() - start, 1e-7)
        together += once
        repeats[name] = max(1, int(seconds / rounds / once))
    return _rounds(calls, repeats, min(rounds, max(3, int(30 / together))))


def _rounds(
    calls: Mapping[str, Callable[[], object]], repeats: Mapping[str, int], rounds: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_mean(call, repeats[name]))
    return times


def _mean(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def ratio(peer: list[float], ours: list[float]) -> float:
    """How many times faster ours is: the median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(peer, ours))
