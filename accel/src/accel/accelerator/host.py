"""Streams and events for a device on which every operation has finished when its call returns.

They are real objects: they construct, nest, order (trivially) and time. torch's own stream and
event for the host processor refuse to record (torch 2.13), so code written for an asynchronous
device could not run on a synchronous one.
"""

from __future__ import annotations

import time
from contextvars import ContextVar, Token
from types import TracebackType


class HostEvent:
    """A mark in a :class:`HostStream`; complete as soon as it is recorded."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.enable_timing = enable_timing
        self._nanoseconds: int | None = None

    def record(self, stream: HostStream | None = None) -> None:
        """Note the present moment."""
        self._nanoseconds = time.perf_counter_ns()

    def wait(self, stream: HostStream | None = None) -> None:
        """Return: what was recorded has happened."""

    def synchronize(self) -> None:
        """Return: what was recorded has happened."""

    def query(self) -> bool:
        """True: what was recorded has happened."""
        return True

    def elapsed_time(self, end: HostEvent) -> float:
        """Milliseconds from this event's record to ``end``'s."""
        if not (self.enable_timing and end.enable_timing):
            raise ValueError("both events need enable_timing=True for elapsed_time()")
        if self._nanoseconds is None or end._nanoseconds is None:
            raise ValueError("both events must be recorded before elapsed_time()")
        return (end._nanoseconds - self._nanoseconds) / 1e6


class HostStream:
    """A queue of work on a synchronous device: always empty."""

    def __init__(self, device: object = None, priority: int = 0) -> None:
        self.priority = priority
        self._tokens: list[Token[HostStream | None]] = []

    def synchronize(self) -> None:
        """Return: nothing is pending."""

    def query(self) -> bool:
        """True: nothing is pending."""
        return True

    def wait_event(self, event: HostEvent) -> None:
        """Return: what was recorded has happened."""

    def wait_stream(self, stream: HostStream) -> None:
        """Return: nothing is pending there."""

    def record_event(self, event: HostEvent | None = None) -> HostEvent:
        """Record ``event``, or a new one, now."""
        event = event or HostEvent()
        event.record(self)
        return event

    def __enter__(self) -> HostStream:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _current.reset(self._tokens.pop())


DEFAULT_STREAM = HostStream()
_current: ContextVar[HostStream | None] = ContextVar("accel_host_stream", default=None)


def current_stream() -> HostStream:
    """The stream whose ``with`` block we are in, or the default one."""
    return _current.get() or DEFAULT_STREAM
