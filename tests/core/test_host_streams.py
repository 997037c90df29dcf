"""Streams and events of a synchronous device: real objects that nest, order and time."""

import threading
import time

import pytest

from accel import testing


@pytest.fixture
def acc():
    return testing.FakeAccelerator(testing.fake_backend().accel_backend())


def test_work_goes_to_the_default_stream_at_first(acc):
    assert acc.current_stream() is acc.default_stream()
    acc.synchronize()


def test_streams_nest_and_one_may_be_entered_again(acc):
    a, b = acc.Stream(), acc.Stream()
    with acc.stream(a):
        with acc.stream(b), acc.stream(a):
            assert acc.current_stream() is a
        assert acc.current_stream() is a
    assert acc.current_stream() is acc.default_stream()


def test_an_exception_restores_the_stream(acc):
    with pytest.raises(KeyError), acc.stream(acc.Stream()):
        raise KeyError
    assert acc.current_stream() is acc.default_stream()


def test_another_thread_has_a_current_stream_of_its_own(acc):
    seen = []
    with acc.stream(acc.Stream()):
        thread = threading.Thread(target=lambda: seen.append(acc.current_stream()))
        thread.start()
        thread.join()
    assert seen == [acc.default_stream()]


@pytest.mark.parametrize("stranger", [None, object(), "stream"])
def test_a_stranger_is_no_stream(acc, stranger):
    with pytest.raises(TypeError, match="needs one of its own streams"):
        acc.stream(stranger)


def test_streams_wait_for_events_and_for_each_other(acc):
    a, b = acc.Stream(), acc.Stream(priority=-1)
    event = a.record_event()
    b.wait_event(event)
    b.wait_stream(a)
    b.synchronize()
    assert (a.query(), b.query(), event.query(), b.priority) == (True, True, True, -1)
    assert a.record_event(event) is event


def test_events_time_in_milliseconds(acc):
    start, end = acc.Event(enable_timing=True), acc.Event(enable_timing=True)
    start.record()
    time.sleep(0.02)
    end.record(acc.current_stream())
    end.synchronize()
    start.wait()
    assert 20 <= start.elapsed_time(end) < 2000
    assert end.elapsed_time(start) == -start.elapsed_time(end)


def test_an_event_that_was_not_made_for_timing_says_so(acc):
    timed, plain = acc.Event(enable_timing=True), acc.Event()
    for event in (timed, plain):
        event.record()
    for pair in ((timed, plain), (plain, timed)):
        with pytest.raises(ValueError, match="enable_timing=True"):
            pair[0].elapsed_time(pair[1])


def test_an_event_that_was_not_recorded_says_so(acc):
    recorded, blank = acc.Event(enable_timing=True), acc.Event(enable_timing=True)
    recorded.record()
    for pair in ((recorded, blank), (blank, recorded)):
        with pytest.raises(ValueError, match="must be recorded"):
            pair[0].elapsed_time(pair[1])


def test_there_is_one_device(acc):
    acc.set_device(0)
    assert (acc.device_count(), acc.current_device()) == (1, 0)
    with pytest.raises(ValueError, match="the one device 0, not 1"):
        acc.set_device(1)
