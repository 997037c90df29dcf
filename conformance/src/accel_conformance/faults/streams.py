"""Streams and events that do not order work, on a device that works later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from accel_conformance.faults.device import runtime
from accel_conformance.faults.planting import Device, faults_of

fault = faults_of("stream")

ORDER = ("accelerator/events_order_streams",)
QUERIES = "accelerator/queries_tell_what_is_done"


def with_stream(right: Device, **members: Any) -> Device:
    """The device layer with another class of streams."""
    stream = type("Stream", (runtime.Stream,), members)
    return type(right.__name__, (right,), {"Stream": stream})


def with_event(right: Device, **members: Any) -> Device:
    """The device layer with another class of events."""
    event = type("Event", (runtime.Event,), members)
    return type(right.__name__, (right,), {"Event": event})


@fault("events", *ORDER, role="accelerator")
def wait_event_does_nothing(right: Device) -> Device:
    """A stream does not wait for an event."""
    return with_stream(right, wait_event=lambda self, event: None)


@fault("events", *ORDER, role="accelerator")
def wait_stream_does_nothing(right: Device) -> Device:
    """A stream does not wait for another."""
    return with_stream(right, wait_stream=lambda self, stream: None)


@fault("events", *ORDER, role="accelerator")
def wait_does_nothing(right: Device) -> Device:
    """An event makes no stream wait."""
    return with_event(right, wait=lambda self, stream=None: None)


@fault("events", *ORDER, also="streams", role="accelerator")
def recorded_on_another_stream(right: Device) -> Device:
    """An event is recorded on the current stream, whichever was named."""
    return with_event(right, record=lambda self, stream=None: runtime.Event.record(self))


@fault("events", *ORDER, role="accelerator")
def record_event_on_the_default(right: Device) -> Device:
    """A stream records events on the default stream."""

    def record_event(self: runtime.Stream, event: Any = None) -> Any:
        return runtime.default_stream().record_event(event)

    return with_stream(right, record_event=record_event)


@fault("streams", "accelerator/synchronize_waits", QUERIES, also="events", role="accelerator")
def synchronize_returns_early(right: Device) -> Device:
    """The device's synchronize() returns while work is queued."""

    class Faulty(right):
        def synchronize(self, device_index: int | None = None) -> None:
            pass

    return Faulty


@fault("streams", "accelerator/synchronize_waits", QUERIES, also="events", role="accelerator")
def synchronizes_the_current_stream(right: Device) -> Device:
    """The device's synchronize() waits for the current stream alone."""

    class Faulty(right):
        def synchronize(self, device_index: int | None = None) -> None:
            self.current_stream().synchronize()

    return Faulty


@fault("streams", "accelerator/synchronize_waits", "accelerator/streams_finish", also="events",
       role="accelerator")  # fmt: skip
def stream_synchronize_returns_early(right: Device) -> Device:
    """A stream's synchronize() returns while its work is queued."""
    return with_stream(right, synchronize=lambda self: None)


@fault("events", "accelerator/synchronize_waits", role="accelerator")
def event_synchronize_returns_early(right: Device) -> Device:
    """An event's synchronize() returns before the work that it marks is done."""
    return with_event(right, synchronize=lambda self: None)


@fault("streams", QUERIES, role="accelerator")
def stream_always_done(right: Device) -> Device:
    """A stream with work says that it is done."""
    return with_stream(right, query=lambda self: True)


@fault("events", QUERIES, role="accelerator")
def event_always_done(right: Device) -> Device:
    """An event says that it has happened before it has."""
    return with_event(right, query=lambda self: True)


@fault("streams", "accelerator/streams_finish", QUERIES,
       role="accelerator")  # fmt: skip
def stream_never_done(right: Device) -> Device:
    """A stream whose work is done says that it is not."""
    return with_stream(right, query=lambda self: False)


@fault("streams", "accelerator/streams_are_left_by_exceptions", role="accelerator")
def stream_not_left_by_an_exception(right: Device) -> Device:
    """An exception leaves the stream current."""

    class Faulty(right):
        @contextmanager
        def stream(self, stream: Any) -> Iterator[Any]:
            before = runtime._current.set(stream)
            yield stream
            runtime._current.reset(before)

    return Faulty


@fault("streams", "accelerator/streams_nest", role="accelerator")
def left_for_the_default(right: Device) -> Device:
    """Leaving an inner stream makes the default one current."""

    class Faulty(right):
        @contextmanager
        def stream(self, stream: Any) -> Iterator[Any]:
            runtime._current.set(stream)
            try:
                yield stream
            finally:
                runtime._current.set(runtime.default_stream())

    return Faulty


@fault("streams", "accelerator/streams_are_left_by_exceptions", role="accelerator")
def exceptions_swallowed(right: Device) -> Device:
    """An exception ends at the stream's context."""

    class Faulty(right):
        @contextmanager
        def stream(self, stream: Any) -> Iterator[Any]:
            with runtime.stream(stream), suppress(Exception):
                yield stream

    return Faulty


@fault("streams", "accelerator/streams_nest", "accelerator/default_stream_is_current_outside",
       "accelerator/streams_are_left_by_exceptions", role="accelerator")  # fmt: skip
def current_stream_made_anew(right: Device) -> Device:
    """The current stream is a new one each time it is asked for."""

    class Faulty(right):
        def current_stream(self, device_index: int | None = None) -> Any:
            return self.Stream()

    return Faulty


@fault("capability", "accelerator/capability/graphs", role="accelerator")
def replayed_once(right: Device) -> Device:
    """A graph that was replayed is empty."""

    class Graph(runtime.Graph):
        def replay(self) -> None:
            super().replay()
            self.queue.clear()

    class Faulty(right):
        def _graph_api(self) -> Any:
            return Graph, runtime.capture

    return Faulty


@fault("capability", "accelerator/capability/graphs", role="accelerator")
def captured_and_not_kept(right: Device) -> Device:
    """What is captured is done at once, and replaying does nothing."""

    class Graph(runtime.Graph):
        def submit(self, work: Any) -> int:
            work()
            return 0

    class Faulty(right):
        def _graph_api(self) -> Any:
            return Graph, runtime.capture

    return Faulty
