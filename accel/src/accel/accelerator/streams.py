"""Streams and events of an accelerator."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from accel.accelerator import host
from accel.accelerator.capabilities import Capable
from accel.refusal import Refusal


class Streams(Capable):
    """Streams order work within themselves; events order it between them.

    A synchronous device has real stream and event objects too, which complete at once.
    """

    def refusal(self, capability: str) -> Refusal | None:
        if capability in ("streams", "events", "event_timing") and self.is_synchronized_device():
            return None
        return super().refusal(capability)

    def is_synchronized_device(self) -> bool:
        """True if every operation has finished when its call returns."""
        return False

    def use_host_timers(self) -> bool:
        """True if wall-clock time around a call is its time on the device."""
        return self.is_synchronized_device()

    def resolves_data_dependency(self) -> bool:
        """True if dependent work on different streams is ordered without being asked."""
        return self.is_synchronized_device()

    def handles_memory_backpressure(self) -> bool:
        """True if the allocator slows the host down by itself when memory runs short."""
        return self.is_synchronized_device()

    @property
    def Stream(self) -> type[Any]:
        """The stream class; ``Stream()`` makes a new stream on the current device."""
        if self.is_synchronized_device():
            return host.HostStream
        self.require("streams")
        return self.module.Stream  # type: ignore[no-any-return]

    @property
    def Event(self) -> type[Any]:
        """The event class; ``Event(enable_timing=True)`` for ``elapsed_time`` in milliseconds."""
        if self.is_synchronized_device():
            return host.HostEvent
        self.require("events")
        return self.module.Event  # type: ignore[no-any-return]

    def stream(self, stream: Any) -> AbstractContextManager[Any]:
        """A context in which work goes to ``stream``."""
        if self.is_synchronized_device():
            if not isinstance(stream, host.HostStream):
                raise TypeError(f"{self.name!r} needs one of its own streams, not {stream!r:.80}")
            return stream
        return self._ask("stream", stream, capability="streams")  # type: ignore[no-any-return]

    def current_stream(self, device_index: int | None = None) -> Any:
        """The stream that work goes to now."""
        if self.is_synchronized_device():
            return host.current_stream()
        return self._ask("current_stream", device_index, capability="streams")

    def default_stream(self, device_index: int | None = None) -> Any:
        """The stream that work goes to unless told otherwise."""
        if self.is_synchronized_device():
            return host.DEFAULT_STREAM
        return self._ask("default_stream", device_index, capability="streams")

    def synchronize(self, device_index: int | None = None) -> None:
        """Return when all work queued on the device has finished."""
        if not self.is_synchronized_device():
            self._ask("synchronize", device_index)
