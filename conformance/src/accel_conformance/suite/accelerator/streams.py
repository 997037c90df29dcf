"""Streams and events: they nest, order work, are left on any way out, and tell milliseconds.

A synchronous device passes where its objects complete at once; on any other the work ordered here
is long enough to be seen unfinished.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch

from accel.accelerator import Accelerator
from accel_conformance.case import Evidence
from accel_conformance.suite.accelerator.lacking import lacks

PAUSE_MS = 20.0
WORK_MS = 10.0
TRIES = 3  # a busy machine may come too late to see work undone, but not each time


def questions_are_bools(acc: Accelerator, seen: Evidence) -> None:
    for name in ("is_synchronized_device", "use_host_timers", "resolves_data_dependency",
                 "handles_memory_backpressure"):  # fmt: skip
        answer = getattr(acc, name)()
        seen.expect("types", isinstance(answer, bool), f"{name}() is {answer!r}, not a bool")


def streams_nest(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "streams", seen):
        return
    outside, first, second = acc.current_stream(), acc.Stream(), acc.Stream()
    with acc.stream(first):
        seen.expect("streams", acc.current_stream() == first, "stream(a) does not make a current")
        with acc.stream(second):
            inner = acc.current_stream() == second
            seen.expect("streams", inner, "stream(b) inside stream(a) does not make b current")
        seen.expect("streams", acc.current_stream() == first, "leaving b does not restore a")
    seen.expect("streams", acc.current_stream() == outside, "leaving a does not restore the first")


def streams_are_left_by_exceptions(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "streams", seen):
        return
    outside = acc.current_stream()
    try:
        with acc.stream(acc.Stream()):
            raise KeyError("leaving")
    except KeyError:
        pass
    else:
        seen.expect("streams", False, "stream() swallows exceptions")
    left = acc.current_stream() == outside
    seen.expect("streams", left, "an exception leaves the stream current")


def default_stream_is_current_outside(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "streams", seen):
        return
    same = acc.default_stream() == acc.current_stream()
    seen.expect("streams", same, "default_stream() is not current outside every stream()")


def streams_finish(acc: Accelerator, seen: Evidence) -> None:
    if lacks(acc, "streams", seen):
        return
    stream = acc.Stream()
    with acc.stream(stream):
        _long_work(acc)
    stream.synchronize()
    done = stream.query()
    seen.expect("streams", done is True, f"after synchronize() query() is {done!r}")
    acc.synchronize()
    acc.synchronize(acc.current_device())


def synchronize_waits(acc: Accelerator, seen: Evidence) -> None:
    """Each of the ways to wait returns when the work is done, and not before."""
    if lacks(acc, "streams", seen) or lacks(acc, "events", seen):
        return
    ways = {
        "acc.synchronize()": ("streams", lambda stream, event: acc.synchronize()),
        "stream.synchronize()": ("streams", lambda stream, event: stream.synchronize()),
        "event.synchronize()": ("events", lambda stream, event: event.synchronize()),
    }
    for name, (rule, wait) in ways.items():
        cell, stream, event = _working(acc)
        wait(stream, event)
        beside = acc.Stream()  # which nothing orders after the work
        with acc.stream(beside):
            read = cell.clone()
        beside.synchronize()
        seen.expect(rule, bool((read == 1).all()), f"{name} returns before the work is done")
        acc.synchronize()


def queries_tell_what_is_done(acc: Accelerator, seen: Evidence) -> None:
    """Of work that takes a while query() says once at least that it is not done."""
    if lacks(acc, "streams", seen) or lacks(acc, "events", seen):
        return
    for rule, which in {"streams": 1, "events": 2}.items():
        denied = acc.is_synchronized_device()
        for _ in range(TRIES):
            asked = _working(acc)[which]
            denied = denied or asked.query() is False
            acc.synchronize()
            done = asked.query()
            seen.expect(rule, done is True, f"after synchronize() query() is {done!r}")
        seen.expect(rule, denied, "query() says of work that was just queued that it is done")


def _working(acc: Accelerator) -> tuple[torch.Tensor, Any, Any]:
    """(zeros that long work makes ones, the stream where it does, an event after it)"""
    stream, event = acc.Stream(), acc.Event()
    cell = torch.zeros(1 << 16, device=acc.device())
    acc.synchronize()
    with acc.stream(stream):
        cell += _long_work(acc) * 0 + 1
        event.record()
    return cell, stream, event


def events_order_streams(acc: Accelerator, seen: Evidence) -> None:
    """A consumer that waits for a slow producer's event reads what the producer wrote."""
    if lacks(acc, "streams", seen) or lacks(acc, "events", seen):
        return
    for wait in (_by_event, _by_stream, _by_event_itself):
        producer, consumer = acc.Stream(), acc.Stream()
        cell = torch.zeros(1 << 16, device=acc.device())
        acc.synchronize()
        with acc.stream(producer):
            cell += _long_work(acc) * 0 + 1
        wait(acc, producer, consumer)
        with acc.stream(consumer):
            read = cell.clone()
        consumer.synchronize()
        says = f"{wait.__name__[1:]}: work after it did not see work before it"
        seen.expect("events", bool((read == 1).all()), says)


def events_tell_milliseconds(acc: Accelerator, seen: Evidence) -> None:
    """Three events with pauses between: differences are floats, in order, and as long as the
    pauses."""
    if lacks(acc, "event_timing", seen):
        return
    events = [acc.Event(enable_timing=True) for _ in range(3)]
    for event in events:
        acc.synchronize()
        event.record()
        acc.synchronize()
        time.sleep(PAUSE_MS / 1000)
    for event in events:
        event.synchronize()
        seen.expect("events", event.query() is True, "query() is not True after synchronize()")
    first, whole = (events[0].elapsed_time(end) for end in events[1:])
    seen.expect("types", isinstance(first, float), f"elapsed_time() is {first!r}, not a float")
    seen.expect("events", 0 <= first <= whole, f"{first} ms, then {whole} ms to a later event")
    # The upper bound leaves room for a busy machine, and none for seconds or microseconds.
    right = 0.9 * PAUSE_MS <= first < 100 * PAUSE_MS
    seen.expect("events", right, f"a pause of {PAUSE_MS} ms is measured as {first} ms")
    events[0].record()  # again, after the last: it is moved there
    acc.synchronize()
    since = events[2].elapsed_time(events[0])
    says = f"{since} ms to an event recorded anew after a pause of {PAUSE_MS} ms"
    seen.expect("events", since >= 0.9 * PAUSE_MS, says)


def _long_work(acc: Accelerator) -> torch.Tensor:
    """A scalar that depends on ``WORK_MS`` of work; on a synchronous device on a little."""
    return _products(acc, 64 if acc.is_synchronized_device() else _long_enough(acc))


@cache
def _long_enough(acc: Accelerator) -> int:
    """The size of a matrix whose products keep the device busy for ``WORK_MS``."""
    for size in (128, 256, 512, 1024, 2048, 4096, 8192):
        _products(acc, size)  # what is done once is done
        acc.synchronize()
        began = time.perf_counter()
        _products(acc, size)
        acc.synchronize()
        if time.perf_counter() - began >= WORK_MS / 1000:
            break
    return size


def _products(acc: Accelerator, size: int) -> torch.Tensor:
    a = torch.full((size, size), 1 / size, device=acc.device())
    for _ in range(4):
        a = a @ a
    return a[0, 0]


def _by_event(acc: Accelerator, producer: Any, consumer: Any) -> None:
    consumer.wait_event(producer.record_event())


def _by_stream(acc: Accelerator, producer: Any, consumer: Any) -> None:
    consumer.wait_stream(producer)


def _by_event_itself(acc: Accelerator, producer: Any, consumer: Any) -> None:
    event = acc.Event()
    event.record(producer)
    event.wait(consumer)


CHECKS = (
    questions_are_bools,
    streams_nest,
    streams_are_left_by_exceptions,
    default_stream_is_current_outside,
    streams_finish,
    synchronize_waits,
    queries_tell_what_is_done,
    events_order_streams,
    events_tell_milliseconds,
)
