"""Processors, criteria and streamers are transformers' own, and see what they see there."""

import copy
import threading

import models
import pytest
import torch
from agreement import assert_agree
from measures import seeded
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    LogitsProcessor,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

import accel

IDS = seeded((3, 6))
MASK = torch.ones_like(IDS)
MASK[0, :3] = 0
WIDTH = IDS.shape[1]
NEW = 12


@pytest.fixture(scope="module", params=models.MAKERS)
def theirs(request):
    """A model that stays transformers'."""
    return models.MAKERS[request.param](initializer_range=0.15)


@pytest.fixture(scope="module")
def engine(theirs, build_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCEL_BACKEND", "cpu")
        patch.setenv("ACCEL_CACHE_DIR", str(build_cache))
        yield accel.HybridEngine(copy.deepcopy(theirs))


@pytest.fixture(scope="module")
def usual(theirs):
    """What is answered where nothing is asked for."""
    return asked_of(theirs.generate)[:, WIDTH:]


@pytest.fixture(scope="module")
def tokenizer():
    """The model's tokens are the first bytes of its alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: models.VOCAB]
    vocabulary = {letter: token for token, letter in enumerate(alphabet)}
    bytes_of = Tokenizer(BPE(vocabulary, []))
    bytes_of.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_of.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bytes_of)


def asked_of(generate, **asked):
    return generate(IDS, attention_mask=MASK, max_new_tokens=NEW, pad_token_id=0, **asked)


def both(theirs, engine, **asked):
    """What each generates, from objects of its own: some remember what they saw."""
    want = asked_of(theirs.generate, **copy.deepcopy(asked))
    return asked_of(engine.generate, **asked), want


ASKED = {
    "repetition": {"repetition_penalty": 1.5},
    "ngrams": {"no_repeat_ngram_size": 2},
    "single": {"no_repeat_ngram_size": 1, "repetition_penalty": 0.7},
    "suppressed": {"suppress_tokens": [3, 50, 60], "begin_suppress_tokens": [7, 8]},
    "forced": {"forced_eos_token_id": 3, "eos_token_id": 3},
    "normalised": {"renormalize_logits": True, "remove_invalid_values": True},
    "certain": {"do_sample": True, "top_k": 1, "repetition_penalty": 2.0},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_tokens_are_those_of_transformers(theirs, engine, asked):
    found, want = both(theirs, engine, **asked)
    assert torch.equal(found, want)


def test_what_speaks_of_certain_tokens_acts_as_in_transformers(theirs, engine, usual):
    first, second = usual[0, 0].item(), usual[0, 1].item()
    eos = usual[1, 0].item()
    for asked in (
        {"bad_words_ids": [[first], [usual[1, 0].item(), usual[1, 1].item()]]},
        {"sequence_bias": [[[second], -20.0], [[5], 3.0]]},
        {"min_new_tokens": 4, "eos_token_id": eos},
        {"min_length": WIDTH + 3, "eos_token_id": eos},
        {"min_new_tokens": 2, "min_length": 99, "eos_token_id": eos},
        {"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": eos},
    ):
        found, want = both(theirs, engine, **asked)
        assert torch.equal(found, want), asked
        assert not torch.equal(found[:, WIDTH:], usual), "it acts"


@pytest.mark.parametrize("asked", [{"repetition_penalty": 1.3}, {"do_sample": True, "top_k": 1}])
def test_scores_are_those_of_transformers_and_what_tokens_are_valued_by(theirs, engine, asked):
    asked = {**asked, "return_dict_in_generate": True, "output_scores": True}
    found, want = both(theirs, engine, **asked)
    assert_agree(found.scores, want.scores)
    values = theirs.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
    assert_agree(found.processed_logprobs, values)
    assert found.logits is None


class Walk(LogitsProcessor):
    """Each row has a token that it may not repeat: its own, by its place, and its last; writes to
    what it is given, as many do."""

    def __init__(self):
        self.shapes, self.rows = [], None

    def __call__(self, input_ids, scores):
        self.rows = torch.arange(len(scores)) if self.rows is None else self.rows
        self.shapes.append((*input_ids.shape, len(scores)))
        scores[self.rows, self.rows + 5] = float("-inf")
        scores[self.rows, input_ids[:, -1]] = float("-inf")
        return scores


def test_a_processor_of_the_callers_sees_all_rows_to_the_end(theirs, engine, usual):
    eos, walk = usual[1, 0].item(), Walk()
    found, want = both(theirs, engine, logits_processor=[walk], eos_token_id=eos)
    assert torch.equal(found, want)
    steps = found.shape[1] - WIDTH
    assert walk.shapes == [(3, WIDTH + step, 3) for step in range(steps)]


def test_what_a_processor_writes_over_was_kept(engine):
    asked = {"return_logprobs": True, "output_logits": True, "output_scores": True}
    made = asked_of(engine.generate, logits_processor=[Walk()], **asked)
    scored = engine.logprobs(made.sequences, made.attention_mask)
    assert torch.equal(scored[:, -NEW:], made.logprobs)
    assert (made.processed_logprobs > made.logprobs).all()
    assert made.logits[0].isfinite().all()
    assert made.scores[0].isneginf().any()


class Enough(StoppingCriteria):
    """A row has, when it has made as many tokens as its place says."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append((tuple(input_ids.shape), None if scores is None else len(scores)))
        return torch.tensor([input_ids.shape[1] - WIDTH > row for row in range(len(input_ids))])


def test_a_criterion_of_the_callers_ends_rows_one_by_one(theirs, engine):
    enough, never = Enough(), models.VOCAB - 1  # an end, behind which transformers too has padding
    found, want = both(theirs, engine, stopping_criteria=[enough], eos_token_id=never)
    assert torch.equal(found, want)
    assert enough.seen == [((3, WIDTH + made), None) for made in (1, 2, 3)]
    asked = {"stopping_criteria": [enough], "output_scores": True}
    made = asked_of(engine.generate, **asked)
    assert made.response_mask.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert [count for _, count in enough.seen[3:]] == [1, 2, 3]


def test_allowed_tokens_are_asked_for_row_by_row(theirs, engine, usual):
    def allowed(row, ids):
        return [row + 20, row + 30, int(ids[-1]) % 50]

    found, want = both(
        theirs, engine, prefix_allowed_tokens_fn=allowed, eos_token_id=usual[1, 0].item()
    )
    assert torch.equal(found, want)


def test_a_string_ends_an_answer_as_in_transformers(theirs, engine, usual, tokenizer):
    letters = tokenizer.convert_ids_to_tokens(usual[0].tolist())
    asked = {"stop_strings": ["".join(letters[2:4])], "tokenizer": tokenizer}
    found, want = both(theirs, engine, eos_token_id=models.VOCAB - 1, **asked)
    assert torch.equal(found, want)
    made = asked_of(engine.generate, return_logprobs=True, **asked)
    assert 0 < made.response_mask[0].sum() <= 4
    with pytest.raises(ValueError, match="tokenizer"):
        asked_of(engine.generate, stop_strings=["x"])


def test_time_ends_all_answers(engine):
    assert asked_of(engine.generate, max_time=0.0).shape == (3, WIDTH + 1)
    assert asked_of(engine.generate, max_time=1e9).shape == (3, WIDTH + NEW)


# -- streaming ---------------------------------------------------------------------------------


class Listener(BaseStreamer):
    def __init__(self):
        self.heard = []

    def put(self, value):
        self.heard.append(value.tolist())

    def end(self):
        self.heard.append("end")


def test_a_streamer_hears_what_it_hears_of_transformers(theirs, engine, usual):
    mine, other = Listener(), Listener()
    asked = {"eos_token_id": [usual[0, 1].item(), usual[1, 4].item()]}
    asked_of(theirs.generate, streamer=other, **asked)
    made = asked_of(engine.generate, streamer=mine, **asked)
    assert mine.heard == other.heard
    assert mine.heard == [IDS.tolist(), *made[:, WIDTH:].T.tolist(), "end"]


def test_text_can_be_read_while_it_is_made(engine, tokenizer):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    asked = {"max_new_tokens": NEW, "streamer": streamer}
    thread = threading.Thread(target=engine.generate, args=(IDS[:1],), kwargs=asked)
    thread.start()
    read = "".join(streamer)
    thread.join()
    made = engine.generate(IDS[:1], max_new_tokens=NEW)[0, WIDTH:]
    assert read == tokenizer.decode(made)


# -- whatever the padding ------------------------------------------------------------------------

BY_CONTEXT = {
    "repetition_penalty": 1.5, "no_repeat_ngram_size": 1, "bad_words_ids": [[4, 9], [11]],
    "suppress_tokens": [5], "eos_token_id": 3, "min_new_tokens": 2, "stop_strings": ["ab"],
}  # fmt: skip


@pytest.mark.parametrize("asked", [{}, {"do_sample": True, "top_p": 0.9, "seed": 3}], ids=str)
def test_an_answer_is_the_same_on_either_side_of_padding_and_alone(engine, tokenizer, asked):
    asked = {**BY_CONTEXT, **asked, "tokenizer": tokenizer, "return_logprobs": True}
    padding, nothing = seeded((3, 4), seed=9), torch.zeros(3, 4, dtype=torch.int64)
    ones = torch.ones_like(IDS)
    want = engine.generate(IDS, ones, max_new_tokens=NEW, **asked)
    for columns in (lambda x, y: (x, y), lambda x, y: (y, x)):
        ids, mask = torch.cat(columns(IDS, padding), 1), torch.cat(columns(ones, nothing), 1)
        made = engine.generate(ids, mask, max_new_tokens=NEW, **asked)
        for name in ("logprobs", "processed_logprobs", "response_mask"):
            assert torch.equal(made[name], want[name])
        assert torch.equal(made.sequences[:, ids.shape[1] :], want.sequences[:, WIDTH:])
        scored = engine.logprobs(made.sequences, made.attention_mask)
        assert torch.equal(scored[:, -made.logprobs.shape[1] :], made.logprobs)
    for row in range(3):
        alone = engine.generate(IDS[[row]], max_new_tokens=NEW, **asked)
        length = int(want.response_mask[row].sum())
        assert alone.logprobs.shape[1] == length
        assert torch.equal(alone.logprobs[0], want.logprobs[row, :length])
        assert torch.equal(alone.processed_logprobs[0], want.processed_logprobs[row, :length])
