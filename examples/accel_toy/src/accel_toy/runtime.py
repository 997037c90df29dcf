"""The toy device: streams, events, memory figures and random numbers.

This module is what `torch.get_device_module("toy")` returns. Its names mean what they mean in
`torch.cuda`; `run`, `draw_seed` and `Stream.submit` are for `dispatch`.

The device is asynchronous on purpose. Work is only *queued* on a stream and runs when somebody
waits for it; of work that nothing orders, the latest runs first. Since fresh memory holds NaN, a
missing wait shows each time, instead of being right by luck.
"""

import collections
import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import torch
from torch.types import Device

from accel_toy import memory

QUEUE_DEPTH = 1024  # a full queue makes the host wait, as a real device does


def is_available() -> bool:
    return True


def is_initialized() -> bool:
    return True


def device_count() -> int:
    """One: torch asks its own guard, not us, which device is current, and that always says 0."""
    return 1


def current_device() -> int:
    return 0


def set_device(device: Device) -> None:
    index = torch.device(device).index if isinstance(device, str | torch.device) else device
    if index:
        raise RuntimeError(f"there is no device toy:{index}; the only one is toy:0")


@contextlib.contextmanager
def device(device: Device) -> Iterator[None]:
    set_device(device)
    yield


@functools.cache
def _thread(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="toy")


def run(work: Callable, *args: object) -> object:
    """Run `work` on the device and wait for it.

    The device is a thread of its own, since autocast, transforms and modes belong to a thread, and
    those of whoever waits must not reach work that was queued without them. A forked child gets a
    new one. Inference mode, because there any tensor may be written to.
    """
    return _thread(os.getpid()).submit(torch.inference_mode()(work), *args).result()


class Stream:
    """Work that runs in order; only `wait_event` and `wait_stream` order it with other streams'."""

    _tickets = itertools.count(1)  # across all streams, in the order of submission
    _all: ClassVar[list["Stream"]] = []  # for good: torch.cuda's streams outlive their objects, too

    def __init__(self, device: Device = None, priority: int = 0) -> None:
        set_device(device)
        self._queue: collections.deque[tuple[int, Callable]] = collections.deque()
        self._all.append(self)

    @property
    def device(self) -> torch.device:
        return torch.device("toy", 0)

    def submit(self, work: Callable) -> int:
        """Queue `work`; return its ticket, by which it can be waited for."""
        if len(self._queue) >= QUEUE_DEPTH:
            self.synchronize()
        ticket = next(self._tickets)
        self._queue.append((ticket, work))
        return ticket

    def _advance(self, ticket: int) -> None:
        while self._queue and self._queue[0][0] <= ticket:
            try:
                self._queue[0][1]()
            finally:
                self._queue.popleft()

    def _poll(self, ticket: int) -> bool:
        """Whether all is done up to `ticket`. If not, one step is taken, so that polling ends."""
        if not self._queue or self._queue[0][0] > ticket:
            return True
        run(self._advance, self._queue[0][0])
        return False

    def query(self) -> bool:
        return not self._queue or self._poll(self._queue[-1][0])

    def synchronize(self) -> None:
        if self._queue:
            run(self._advance, self._queue[-1][0])

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        if event._stream is not None:
            self.submit(functools.partial(event._stream._advance, event._ticket))

    def wait_stream(self, stream: "Stream") -> None:
        self.wait_event(stream.record_event())


class Event:
    """A mark in a stream. Recording again moves it; who already waits, waits for the older mark."""

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        self._timing = enable_timing
        self._stream: Stream | None = None
        self._ticket = 0
        self._time = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self._stream = stream or current_stream()
        self._ticket = self._stream.submit(self._stamp)

    def _stamp(self) -> None:
        self._time = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def query(self) -> bool:
        return self._stream is None or self._stream._poll(self._ticket)

    def synchronize(self) -> None:
        if self._stream is not None:
            run(self._stream._advance, self._ticket)

    def elapsed_time(self, end_event: "Event") -> float:
        """Milliseconds from this event to `end_event`."""
        for event in (self, end_event):
            if not event._timing:
                raise RuntimeError("elapsed_time needs events made with enable_timing=True")
            if event._stream is None or not event.query():
                raise RuntimeError("elapsed_time needs completed events: record, then synchronize")
        return (end_event._time - self._time) * 1e3


_default_stream = _current_stream = Stream()


def synchronize(device: Device = None) -> None:
    """Run everything that is queued, the latest first where no stream or event says otherwise."""
    set_device(device)
    while waiting := [stream for stream in Stream._all if stream._queue]:
        last = max(waiting, key=lambda stream: stream._queue[0][0])
        run(last._advance, last._queue[0][0])


def default_stream(device: Device = None) -> Stream:
    return _default_stream


def current_stream(device: Device = None) -> Stream:
    """Where operations are queued. One for all threads: backward runs in a thread of torch's."""
    return _current_stream


def set_stream(stream: Stream) -> None:
    global _current_stream
    _current_stream = stream


@contextlib.contextmanager
def stream(stream: Stream | None) -> Iterator[None]:
    before = current_stream()
    set_stream(stream or before)
    try:
        yield
    finally:
        set_stream(before)


def memory_allocated(device: Device = None) -> int:
    return memory.Usage.current


def max_memory_allocated(device: Device = None) -> int:
    return memory.Usage.peak


memory_reserved = memory_allocated  # nothing is cached: what is reserved is what is allocated
max_memory_reserved = max_memory_allocated


def memory_stats(device: Device = None) -> dict[str, int]:
    figures = {"current": memory_allocated(), "peak": max_memory_allocated()}
    return {
        f"{kind}_bytes.all.{key}": n
        for kind in ("allocated", "reserved")
        for key, n in figures.items()
    }


def reset_peak_memory_stats(device: Device = None) -> None:
    memory.Usage.peak = memory.Usage.current


def mem_get_info(device: Device = None) -> tuple[int, int]:
    return memory.TOTAL - memory.Usage.current, memory.TOTAL


def empty_cache() -> None:
    """Does nothing, truthfully: there is no cache."""


_generator = torch.Generator()


def draw_seed(generator: torch.Generator | None = None) -> int:
    """A seed for one random operation, drawn as it is queued: when it runs then changes nothing."""
    seed = torch.empty((), dtype=torch.int64, device="cpu")
    return int(seed.random_(generator=generator or _generator))


def manual_seed(seed: int) -> None:
    _generator.manual_seed(seed)


manual_seed_all = manual_seed


def initial_seed() -> int:
    return _generator.initial_seed()


def get_rng_state(device: Device = "toy") -> torch.Tensor:
    return _generator.get_state()


def set_rng_state(new_state: torch.Tensor, device: Device = "toy") -> None:
    _generator.set_state(new_state)


def is_bf16_supported() -> bool:
    return True


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16]


def _is_in_bad_fork() -> bool:
    return False
