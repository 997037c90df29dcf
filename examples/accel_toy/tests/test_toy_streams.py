"""Streams and events of the toy device: nothing runs before somebody waits, and in no other order.

Registering a device changes the process for good: run these tests in a pytest process of their own.
"""

import pytest
import torch

from accel_toy import dispatch, memory

toy = dispatch.register()
MIB = 1 << 20


def test_nothing_runs_before_somebody_waits():
    x = torch.ones(3, device="toy") + 1
    assert memory.host_alias(x).isnan().all()
    assert not toy.current_stream().query()
    toy.synchronize()
    assert memory.host_alias(x).tolist() == [2, 2, 2]
    assert toy.current_stream().query()


def wait_for_event(consumer, producer):
    consumer.wait_event(producer.record_event())


def wait_for_stream(consumer, producer):
    consumer.wait_stream(producer)


def let_the_event_wait(consumer, producer):
    producer.record_event().wait(consumer)


def let_the_host_wait(consumer, producer):
    producer.record_event().synchronize()


def do_not_wait(consumer, producer):
    pass


@pytest.mark.parametrize("finish", [toy.Stream.synchronize, lambda stream: toy.synchronize()])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    "wait", [wait_for_event, wait_for_stream, let_the_event_wait, let_the_host_wait, do_not_wait]
)
def test_streams_are_ordered_by_waiting_and_by_nothing_else(wait, swap, finish):
    producer, consumer = toy.Stream(), toy.default_stream()
    if swap:
        producer, consumer = consumer, producer
    x = torch.zeros(4, device="toy")
    toy.synchronize()
    with toy.stream(producer):
        y = x + 1
    wait(consumer, producer)
    with toy.stream(consumer):
        z = y * 2
    finish(consumer)
    values = memory.host_alias(z)
    assert values.isnan().all() if wait is do_not_wait else values.tolist() == [2, 2, 2, 2]


def test_writing_before_another_stream_has_read_shows_too():
    x = torch.zeros(1, device="toy")
    toy.synchronize()
    side = toy.Stream()
    with toy.stream(side):
        y = x + 1
    x.fill_(5)
    toy.synchronize()
    assert y.item() == 6


def test_an_event_recorded_again_leaves_older_waits_alone():
    first, second, event = toy.Stream(), toy.Stream(), toy.Event()
    with toy.stream(first):
        event.record()
        second.wait_event(event)
        x = torch.ones(1, device="toy")
        event.record()
    second.synchronize()
    assert memory.host_alias(x).isnan()
    event.synchronize()
    assert memory.host_alias(x) == 1


def test_polling_an_event_ends():
    x = torch.ones(1, device="toy") + 1
    event = toy.current_stream().record_event()
    polls = [event.query()]
    while not polls[-1]:
        polls.append(event.query())
    assert len(polls) > 1
    assert memory.host_alias(x) == 2
    assert toy.Event().query()


def test_event_times_are_monotone():
    events = [toy.Event(enable_timing=True) for _ in range(3)]
    x = torch.ones(400, 400, device="toy")
    for event in events:
        event.record()
        x = x @ x
    with pytest.raises(RuntimeError, match="synchronize"):
        events[0].elapsed_time(events[2])
    toy.synchronize()
    first, second = events[0].elapsed_time(events[1]), events[1].elapsed_time(events[2])
    assert min(first, second) > 0
    assert events[0].elapsed_time(events[2]) == pytest.approx(first + second)
    assert events[2].elapsed_time(events[0]) < 0
    with pytest.raises(RuntimeError, match="enable_timing"):
        toy.Event().elapsed_time(events[0])


def test_an_error_on_the_device_is_raised_where_the_host_waits():
    x = torch.ones(3, device="toy")
    bad = x[torch.tensor([7], device="toy")]
    with pytest.raises(IndexError):
        toy.synchronize()
    toy.synchronize()
    assert (x + 1).tolist() == [2, 2, 2]
    assert bad.isnan().all()


def test_a_full_queue_makes_the_host_wait():
    x = torch.zeros(1, device="toy")
    for _ in range(toy.QUEUE_DEPTH + 1):
        x.add_(1)
    assert memory.host_alias(x) > 0
