"""How a rollout is made changes no bit of it: in waves, beside prompts that are alike, by rows that
leave, from embeddings, or until somebody stops it."""

import threading

import models
import pytest
import torch
from agreement import assert_agree
from measures import seeded
from test_exactness import same_bits

import accel
from accel.engine.cache import BUCKET
from accel.errors import CapacityError, OpArgumentError

IDS = seeded((7, 6))
IDS[4] = IDS[1]
MASK = torch.ones_like(IDS)
MASK[0, :3], MASK[2, 5:], MASK[5, :1] = 0, 0, 0
WIDTH = IDS.shape[1]
ENDS = list(range(0, models.VOCAB, 12))
ASKED = {
    "max_new_tokens": 20, "do_sample": True, "min_p": 0.01, "eos_token_id": ENDS, "seed": 3,
    "return_logprobs": True, "output_scores": True, "output_logits": True,
}  # fmt: skip
PER_SEQUENCE = {"llama": 2, "gpt2": 4}  # heads of keys, 16 numbers each


@pytest.fixture(scope="module", params=models.MAKERS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def make(name, build_cache):
    """``make(**config)``: an engine of that configuration."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCEL_BACKEND", "cpu")
        patch.setenv("ACCEL_CACHE_DIR", str(build_cache))
        yield lambda **config: accel.HybridEngine(models.MAKERS[name](), config=config)


@pytest.fixture(scope="module")
def engine(make):
    return make()


@pytest.fixture(scope="module")
def room(name):
    """Bytes of the cache for one sequence: keys and values of 2 layers in fp32."""
    return 2 * 2 * PER_SEQUENCE[name] * 16 * 4 * BUCKET


def rollout(engine, ids=IDS, mask=MASK, **asked):
    return engine.generate(ids, mask, **{**ASKED, **asked})


def assert_same(found, want, rows=slice(None)):
    """Of these rows of the one that was wanted."""
    new = found.logprobs.shape[1]
    assert torch.equal(found.sequences, want.sequences[rows, : WIDTH + new])
    assert torch.equal(found.attention_mask, want.attention_mask[rows, : WIDTH + new])
    assert not want.response_mask[rows, new:].any()
    for values in ("logprobs", "processed_logprobs"):
        assert same_bits(found[values], want[values][rows, :new])
    for steps in ("scores", "logits"):
        for mine, other in zip(found[steps], want[steps]):
            assert same_bits(mine, other[rows])


def test_rows_end_at_different_steps_and_are_scored_as_they_were_made(engine):
    made = rollout(engine)
    lengths = made.response_mask.sum(1)
    assert len(lengths.unique()) >= 4
    scored = engine.logprobs(made.sequences, made.attention_mask)
    assert same_bits(scored[:, -made.logprobs.shape[1] :].detach(), made.logprobs)
    for step, (logits, scores) in enumerate(zip(made.logits, made.scores)):
        counts = made.response_mask[:, step] == 1
        assert not logits[~counts].any()
        assert not scores[~counts].any()
        token = made.sequences[counts, WIDTH + step, None]
        chosen = logits[counts].log_softmax(-1).gather(1, token)[:, 0]
        assert_agree(chosen, made.logprobs[counts, step])


@pytest.mark.parametrize("budget", [1, 3, 6])
def test_waves_give_what_one_batch_gives(engine, make, room, budget):
    small = make(kv_cache_bytes=budget * room)
    asked = {"num_return_sequences": 2, "top_k": 30}
    assert_same(rollout(small, **asked), rollout(engine, **asked))
    assert small.model.generate.cache.bytes <= budget * room
    assert small.stats()["generate"]["tokens"] == engine.model.generate.made


def test_a_limit_without_room_for_one_sequence_is_an_error_and_harms_nothing(make, room):
    engine = make(kv_cache_bytes=room)
    want = rollout(engine)
    for asked in ({"max_new_tokens": BUCKET}, {"streamer": "is not reached"}):
        with pytest.raises(CapacityError, match=rf"takes \d+ bytes, .* permits {room}"):
            rollout(engine, **asked)
    assert engine.model.generate.cache.bytes == room
    assert_same(rollout(engine), want)


def test_answers_to_prompts_that_are_alike_are_those_of_each_alone(engine):
    """A prompt alone is the first of its kind, so samples are told apart by number."""
    want = rollout(engine, num_return_sequences=3, sample_ids=range(21))
    for row in range(0, 21, 4):
        asked = {"sample_ids": [row], "output_scores": False, "output_logits": True}
        prompt = slice(row // 3, row // 3 + 1)
        alone = rollout(engine, IDS[prompt], MASK[prompt], **asked)
        new = alone.logprobs.shape[1]
        assert same_bits(alone.logprobs, want.logprobs[[row], :new])
        for mine, other in zip(alone.logits, want.logits):
            assert same_bits(mine, other[[row]])


# -- embeddings --------------------------------------------------------------------------------


def test_embeddings_of_tokens_answer_as_the_tokens(engine):
    embeds = engine.model.get_input_embeddings()(IDS).detach()
    want = rollout(engine)
    assert_same(rollout(engine, inputs_embeds=embeds), want)
    greedy = {"do_sample": False, "repetition_penalty": None}
    alone = engine.generate(inputs_embeds=embeds, attention_mask=MASK, **{**ASKED, **greedy})
    want = rollout(engine, **greedy)
    assert torch.equal(alone.sequences, want.sequences[:, WIDTH:])
    assert torch.equal(alone.attention_mask, want.response_mask)
    assert same_bits(alone.logprobs, want.logprobs)


def test_embeddings_alone_are_told_apart_by_what_they_are(engine):
    embeds = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))[[0, 1, 0]]
    made = engine.generate(inputs_embeds=embeds, **ASKED)
    again = engine.generate(inputs_embeds=embeds[1:], **ASKED)
    assert torch.equal(again.sequences[0], made.sequences[1, : again.sequences.shape[1]])
    assert not torch.equal(made.sequences[0], made.sequences[2])


def test_lengths_of_embeddings_count_as_in_transformers(make, engine):
    embeds = engine.model.get_input_embeddings()(IDS).detach()
    theirs = make(enabled=False).model
    for asked in ({"max_length": 11}, {"max_new_tokens": 5, "min_length": 9, "eos_token_id": ENDS}):
        want = theirs.generate(inputs_embeds=embeds, pad_token_id=0, **asked)
        assert torch.equal(engine.generate(inputs_embeds=embeds, pad_token_id=0, **asked), want)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"inputs_embeds": IDS}, r"floats \[batch, length, hidden\]; found \[7, 6\]"),
        ({"inputs_embeds": torch.ones(7, 6)}, r"found \[7, 6\]"),
        ({"inputs_embeds": torch.ones(7, 5, 64), "input_ids": IDS}, r"5, 64\].*found \[7, 6\]"),
        ({"inputs_embeds": torch.ones(7, 0, 64)}, "needs a token"),
    ],
    ids=str,
)  # fmt: skip
def test_embeddings_that_are_none_are_refused(engine, asked, says):
    with pytest.raises(OpArgumentError, match=says):
        engine.generate(max_new_tokens=1, **asked)


# -- stopping ----------------------------------------------------------------------------------


class After:
    """True once it was asked so many times."""

    def __init__(self, times):
        self.left = times

    def __call__(self):
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_an_aborted_rollout_is_the_beginning_of_the_whole(engine, steps):
    want, made = rollout(engine), rollout(engine, abort=After(steps))
    assert made.aborted
    assert not want.aborted
    assert made.logprobs.shape == (7, steps)
    assert torch.equal(made.sequences, want.sequences[:, : WIDTH + steps])
    assert same_bits(made.logprobs, want.logprobs[:, :steps])
    assert engine.model.generate.made == made.response_mask.sum()


def test_an_event_stops_this_wave_and_those_behind_it(make, engine, room):
    event = threading.Event()
    want = rollout(engine)
    made = rollout(engine, abort=event)
    assert_same(made, want)
    event.set()
    nothing = rollout(engine, abort=event)
    assert (nothing.logprobs.shape, nothing.logits, nothing.scores) == ((7, 0), (), ())
    small = make(kv_cache_bytes=3 * room)  # waves of 3, 2 and 2
    made = rollout(small, abort=After(20 + 2), eos_token_id=None)
    want = rollout(engine, eos_token_id=None)
    assert made.response_mask.sum(1).tolist() == [20, 20, 20, 2, 2, 0, 0]
    assert same_bits(made.logprobs[:3], want.logprobs[:3])
    assert same_bits(made.logprobs[3:5, :2], want.logprobs[3:5, :2])
