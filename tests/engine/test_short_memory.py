"""Where memory is short a rollout is tried once more, after what can be given back was; then a
clear error. Either way nothing else is changed."""

import threading
import weakref

import midway
import models
import pytest
import snapshots
import torch
from measures import seeded
from transformers import TextStreamer

import accel
from accel.engine import cache as caches
from accel.errors import CapacityError

pytestmark = pytest.mark.usefixtures("_one_thread")

IDS = seeded((3, 6))
ASKED = {"max_new_tokens": 5, "do_sample": True, "seed": 2, "return_logprobs": True}
SHORT = {
    torch.OutOfMemoryError: "out of memory", MemoryError: "",
    RuntimeError: "DefaultCPUAllocator: can't allocate memory",
}  # fmt: skip


@pytest.fixture
def engine():
    return midway.trained("llama")


class Failing:
    """Raises, the first so many times it is called after ``after``. An error of its own each time,
    as one that somebody keeps has all that was there with it."""

    def __init__(self, error=torch.OutOfMemoryError, times=1, after=0):
        self.error, self.left, self.after = error, times, after

    def __call__(self):
        self.after -= 1
        if self.after < 0 < self.left:
            self.left -= 1
            raise self.error(SHORT[self.error])


@pytest.mark.parametrize("error", SHORT)
@pytest.mark.parametrize("after", [0, 3])
def test_a_rollout_is_made_on_the_second_try(engine, error, after):
    want, before = engine.generate(IDS, **ASKED), snapshots.training_state(engine)
    failing, held, kept = Failing(error, after=after), [], []
    cache = engine.plan.model.generate.cache

    def hook(module, given):
        if held and failing.left == 0 and not kept:
            kept.append((held[-1](), cache.bytes))
        held.append(weakref.ref(given[0]))
        failing()

    with engine.plan.model.model.layers[1].register_forward_pre_hook(hook):
        made = engine.generate(IDS, **ASKED)
    assert kept[0][0] is None, "what the first try took was given back"
    assert torch.equal(made.sequences, want.sequences)
    assert torch.equal(made.logprobs, want.logprobs)
    assert snapshots.changed(before, snapshots.training_state(engine)) == []


def test_room_is_made_by_giving_back_the_cache(engine, monkeypatch):
    want, empty = engine.generate(IDS, **{**ASKED, "max_new_tokens": 80}), caches._empty
    engine.release_cache()
    engine.generate(IDS, **ASKED)
    cache, failing, found = engine.plan.model.generate.cache, Failing(after=2), []

    def short(shape, like):
        found.append(cache.bytes)
        failing()
        return empty(shape, like)

    monkeypatch.setattr(caches, "_empty", short)
    made = engine.generate(IDS, **{**ASKED, "max_new_tokens": 80})
    assert torch.equal(made.logprobs, want.logprobs)
    assert failing.left == 0
    assert set(found) == {0}


def test_the_second_time_is_a_clear_error(engine):
    want, failing = engine.generate(IDS, **ASKED), Failing(times=2, after=4)
    engine.plan.model.model.norm.register_forward_pre_hook(lambda *given: failing())
    before = snapshots.training_state(engine)
    with pytest.raises(CapacityError, match=r"twice.*: out of memory; .*set kv_cache_bytes"):
        engine.generate(IDS, **ASKED)
    assert engine.plan.model.generate.cache.bytes == 0
    assert snapshots.changed(before, snapshots.training_state(engine)) == []
    assert torch.equal(engine.generate(IDS, **ASKED).logprobs, want.logprobs)


def test_what_a_caller_s_objects_have_seen_is_not_made_twice(engine):
    class Streamer(TextStreamer):
        def __init__(self):
            self.put_so_far = []

        def put(self, value):
            self.put_so_far.append(value)

        def end(self):
            pass

    streamer, failing = Streamer(), Failing(after=2)
    engine.plan.model.model.norm.register_forward_pre_hook(lambda *given: failing())
    with pytest.raises(CapacityError, match="too little memory, once: out of memory"):
        engine.generate(IDS, streamer=streamer, **ASKED)
    assert len(streamer.put_so_far) == 3  # prompts and two tokens
    assert engine.plan.model.generate.cache.bytes == 0


def test_other_errors_are_the_caller_s(engine):
    calls = []

    def hook(*given):
        calls.append(given)
        raise RuntimeError("something else")

    engine.plan.model.model.norm.register_forward_pre_hook(hook)
    with pytest.raises(RuntimeError, match="something else"):
        engine.generate(IDS, **ASKED)
    assert len(calls) == 1


def test_more_than_any_machine_has():
    """Of a model without a last position, 2**48 bytes of tokens alone."""
    engine = accel.HybridEngine(models.small("bloom"))
    want = engine.generate(IDS, max_new_tokens=4)
    with pytest.raises(CapacityError, match="too little memory, twice"):
        engine.generate(seeded((64, 2)), max_new_tokens=1 << 39)
    assert torch.equal(engine.generate(IDS, max_new_tokens=4), want)


def test_two_engines_generate_in_two_threads_at_once():
    engines = [accel.HybridEngine(models.small(name)) for name in models.MAKERS]
    asked = {**ASKED, "max_new_tokens": 40}
    want = [engine.generate(IDS, **asked).logprobs for engine in engines]
    made, together = [[], []], threading.Barrier(2)

    def work(place):
        together.wait()
        made[place] = [engines[place].generate(IDS, **asked).logprobs for _ in range(3)]

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found, wanted in zip(made, want):
        assert len(found) == 3
        assert all(torch.equal(values, wanted) for values in found)
