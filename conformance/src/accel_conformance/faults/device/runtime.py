"""Streams, events, memory figures and random numbers of the simulated devices. The names of this
module mean what they mean in ``torch.cuda``; it is asked in its place.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

TOTAL = 1 << 30
Work = Callable[[], Any]


class _Block(NamedTuple):
    """Memory that a tensor may still hold."""

    storage: StorageWeakRef
    nbytes: int
    device: int


@dataclass
class _State:
    """What the two devices remember."""

    current: int = 0
    streams: list[Stream] = field(default_factory=list)
    blocks: dict[int, _Block] = field(default_factory=dict)
    peaks: list[int] = field(default_factory=lambda: [0, 0])


_state = _State()
_tickets = itertools.count(1)
default_generators = (torch.Generator(), torch.Generator())


def restart() -> None:
    """Forget all work and all memory."""
    global _state
    _state = _State()


def device_count() -> int:
    return len(default_generators)


def current_device() -> int:
    return _state.current


def set_device(device: int) -> None:
    if device not in range(device_count()):
        raise ValueError(f"there is no device {device}; there are {device_count()}")
    _state.current = device


# -- streams -----------------------------------------------------------------------------------


class Stream:
    """Work that runs in order; only ``wait_event`` and ``wait_stream`` order it with others'."""

    def __init__(self, device: object = None, priority: int = 0) -> None:
        self.queue: deque[tuple[int, Work]] = deque()
        _state.streams.append(self)

    def submit(self, work: Work) -> int:
        """Queue ``work``; its ticket, by which it can be waited for."""
        ticket = next(_tickets)
        self.queue.append((ticket, work))
        return ticket

    def advance(self, ticket: int) -> None:
        """Do what was queued up to ``ticket``."""
        while self.queue and self.queue[0][0] <= ticket:
            _, work = self.queue.popleft()
            with _disable_current_modes():
                work()

    def reached(self, ticket: int) -> bool:
        """Whether all is done up to ``ticket``; if not one step is taken, so that asking ends."""
        if not self.queue or self.queue[0][0] > ticket:
            return True
        self.advance(self.queue[0][0])
        return False

    def query(self) -> bool:
        return not self.queue or self.reached(self.queue[-1][0])

    def synchronize(self) -> None:
        if self.queue:
            self.advance(self.queue[-1][0])

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        event.hold(self)

    def wait_stream(self, stream: Stream) -> None:
        stream.record_event().hold(self)


class _DefaultStream(Stream):
    """Where work is done at once."""

    def __init__(self) -> None:
        self.queue = deque()

    def submit(self, work: Work) -> int:
        work()
        return next(_tickets)


class Event:
    """A mark in a stream. Recording again moves it; who already waits, waits for the older mark."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.stream: Stream = _default
        self.ticket = 0
        self.seconds = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or current_stream()
        self.ticket = self.stream.submit(self._stamp)

    def _stamp(self) -> None:
        self.seconds = time.perf_counter()

    def hold(self, stream: Stream) -> None:
        """Let what is queued on ``stream`` from now on wait for the mark."""
        stream.submit(functools.partial(self.stream.advance, self.ticket))

    def wait(self, stream: Stream | None = None) -> None:
        self.hold(stream or current_stream())

    def query(self) -> bool:
        return self.stream.reached(self.ticket)

    def synchronize(self) -> None:
        self.stream.advance(self.ticket)

    def elapsed_time(self, end: Event) -> float:
        return (end.seconds - self.seconds) * 1e3


_default: Stream = _DefaultStream()
_current: ContextVar[Stream] = ContextVar("accel_conformance_stream", default=_default)


def default_stream(device: int | None = None) -> Stream:
    return _default


def current_stream(device: int | None = None) -> Stream:
    return _current.get()


@contextmanager
def stream(stream: Stream) -> Iterator[Stream]:
    token = _current.set(stream)
    try:
        yield stream
    finally:
        _current.reset(token)


def synchronize(device: int | None = None) -> None:
    """Do all that is queued, the latest first where nothing orders it."""
    while waiting := [stream for stream in _state.streams if stream.queue]:
        last = max(waiting, key=lambda stream: stream.queue[0][0])
        last.advance(last.queue[0][0])


class Graph(Stream):
    """Work that is kept, and done whenever it is replayed."""

    def __init__(self) -> None:
        self.queue = deque()

    def replay(self) -> None:
        for _, work in self.queue:
            with _disable_current_modes():
                work()


def capture(graph: Graph, pool: object = None, stream: object = None) -> Any:
    return _into(graph)


_into = stream  # capturing is working on a stream that keeps

# -- memory ------------------------------------------------------------------------------------


def memory_allocated(device: int | None = None) -> int:
    for key in [key for key, block in _state.blocks.items() if block.storage.expired()]:
        del _state.blocks[key]
    own = _state.current if device is None else device
    return sum(block.nbytes for block in _state.blocks.values() if block.device == own)


def max_memory_allocated(device: int | None = None) -> int:
    return _state.peaks[_state.current if device is None else device]


memory_reserved = memory_allocated  # nothing is cached
max_memory_reserved = max_memory_allocated


def memory_stats(device: int | None = None) -> dict[str, int]:
    figures = {"current": memory_allocated(device), "peak": max_memory_allocated(device)}
    kinds = ("allocated", "reserved")
    return {f"{kind}_bytes.all.{key}": n for kind in kinds for key, n in figures.items()}


def reset_peak_memory_stats(device: int | None = None) -> None:
    _state.peaks[_state.current if device is None else device] = memory_allocated(device)


def mem_get_info(device: int | None = None) -> tuple[int, int]:
    return TOTAL - memory_allocated(device), TOTAL


def empty_cache() -> None:
    """Nothing is cached."""


def count(tensor: Tensor) -> None:
    """Note memory that is new."""
    storage = tensor.untyped_storage()
    if storage._cdata not in _state.blocks:
        block = _Block(StorageWeakRef(storage), storage.nbytes(), _state.current)
        _state.blocks[storage._cdata] = block
        _state.peaks[_state.current] = max(_state.peaks[_state.current], memory_allocated())


# -- random numbers ----------------------------------------------------------------------------


def manual_seed(seed: int) -> None:
    default_generators[_state.current].manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    for generator in default_generators:
        generator.manual_seed(seed)


def initial_seed() -> int:
    return default_generators[_state.current].initial_seed()


def get_rng_state(device: int | None = None) -> Tensor:
    return default_generators[_state.current if device is None else device].get_state()


def set_rng_state(new_state: Tensor, device: int | None = None) -> None:
    default_generators[_state.current if device is None else device].set_state(new_state)
