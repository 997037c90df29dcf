"""A model has one KV cache: of two calls of generate at once the later is refused, and the earlier
one's answers are what they are without it."""

from threading import Thread

import pytest
import torch
from measures import seeded
from turns import ASKED, again, assert_same, engine_of, first

from accel.errors import CapacityError, UnsupportedCapability

pytestmark = pytest.mark.usefixtures("_one_thread")


@pytest.mark.parametrize("released", [False, True], ids=["kept", "released"])
@pytest.mark.parametrize("does", ["generate", "release_cache"])
def test_what_a_rollout_calls_cannot_take_its_cache(does, released):
    engine = engine_of(release_inference_cache=released)
    asked = {"generate": (seeded((3, 30), seed=9),), "release_cache": ()}[does]
    want, refused = engine.generate(seeded((3, 9)), **ASKED), []

    def inside():
        with pytest.raises(UnsupportedCapability, match="used by another call") as caught:
            getattr(engine, does)(*asked)
        refused.append(caught)
        return False

    assert_same(engine.generate(seeded((3, 9)), abort=inside, **ASKED), want)
    assert len(refused) == ASKED["max_new_tokens"]
    getattr(engine, does)(*asked)


def test_nor_can_another_thread():
    engine, refused = engine_of(), []
    want = engine.generate(seeded((3, 9)), **ASKED)

    def elsewhere():
        try:
            engine.generate(seeded((3, 9)), **ASKED)
        except UnsupportedCapability as error:
            refused.append(error)

    def inside():
        thread = Thread(target=elsewhere)
        thread.start()
        thread.join()
        return False

    assert_same(engine.generate(seeded((3, 9)), abort=inside, **ASKED), want)
    assert len(refused) == ASKED["max_new_tokens"]


def test_a_rollout_that_was_stopped_is_not_in_the_way():
    engine = engine_of()

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first(engine, abort=stop)
    assert again(engine, first(engine)).reused


def test_a_refused_call_takes_no_seed():
    asked = {**ASKED, "do_sample": True}
    engine, other = engine_of(), engine_of()
    want = [engine.generate(seeded((3, 9)), **asked).seed for _ in range(2)]
    made = [other.generate(seeded((3, 9)), **asked).seed]
    with pytest.raises(CapacityError):
        other.generate(seeded((3, 9)), max_new_tokens=10**6)
    with pytest.raises(ValueError, match="sample_ids"):
        other.generate(seeded((3, 9)), sample_ids=[1], **asked)
    made.append(other.generate(seeded((3, 9)), **asked).seed)
    assert made == want


def test_tokens_may_be_of_any_whole_numbers():
    engine = engine_of(check_exact=True)
    roll = engine.generate(seeded((3, 9)).int(), **ASKED)
    assert roll.sequences.dtype is torch.int32
    assert_same(roll, engine.generate(seeded((3, 9)).int(), **ASKED))
    values = engine.logprobs(roll.sequences, roll.attention_mask)
    assert torch.equal(values[:, -6:], roll.logprobs)
