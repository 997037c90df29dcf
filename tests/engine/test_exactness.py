"""Training and generation agree bit for bit, whatever the batch around a sequence."""

from dataclasses import dataclass

import models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import accel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def cases(names, taught):
    return [
        pytest.param(name, dtype, learned, id=f"{name}-{dtype}-{KINDS[learned]}")
        for name in names
        for dtype in DTYPES
        for learned in taught
    ]


KINDS = {False: "random", True: "trained"}


# What looks at the tokens before, which no padding may be taken for.
BY_CONTEXT = {
    "repetition_penalty": st.floats(0.5, 2),
    "no_repeat_ngram_size": st.integers(2, 3),
    "min_new_tokens": st.integers(1, 9),
}


@dataclass(frozen=True)
class Batch:
    """Prompts ``[B, P]`` as they were asked for, and how."""

    ids: torch.Tensor
    mask: torch.Tensor
    asked: dict  # of generate
    each: int  # answers per prompt
    row: int  # of the answers, the one that is made alone too
    threads: tuple[int, int]  # while generating, while scoring
    micro: int | None
    checkpointing: bool


@st.composite
def batches(draw, vocab):
    lengths = draw(st.lists(st.integers(1, 70), min_size=1, max_size=9))
    left = draw(st.booleans())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    # What stands where there is padding is anything, so that it would be seen in the values.
    ids = torch.randint(vocab, (len(lengths), max(lengths)), generator=generator)
    mask = torch.zeros_like(ids)
    for row, length in zip(mask, lengths):
        row[len(row) - length if left else 0 : None if left else length] = 1
    if draw(st.booleans()):  # text, which a trained model is sure of
        text = models.text() % vocab
        start = draw(st.integers(0, len(text) - ids.numel()))
        ids = torch.where(mask == 1, text[start : start + ids.numel()].view_as(ids), ids)
    each = draw(st.sampled_from((1, 1, 1, 2, 3)))
    asked = {
        "max_new_tokens": draw(st.integers(1, 40)),
        "num_return_sequences": each,
        "eos_token_id": draw(st.none() | st.lists(st.integers(0, vocab - 1), min_size=1)),
        "pad_token_id": draw(st.none() | st.integers(0, vocab - 1)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        **draw(st.fixed_dictionaries({}, optional=BY_CONTEXT)),
    }
    if draw(st.booleans()):
        asked |= {
            "do_sample": True,
            "temperature": draw(st.floats(0.1, 3)),
            "top_k": draw(st.just(0) | st.integers(1, vocab)),
            "top_p": draw(st.just(1.0) | st.floats(0.01, 1)),
        }
        asked["sample_ids"] = draw(st.none() | st.just(list(range(len(ids) * each))))
    elif each > 1:  # transformers permits several answers only where they may differ
        asked |= {"do_sample": True, "top_k": 0}
    return Batch(
        ids, mask, asked, each,
        row=draw(st.integers(0, len(ids) * each - 1)),
        threads=draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
        micro=draw(st.none() | st.integers(1, len(ids) * each)),
        checkpointing=draw(st.booleans()),
    )  # fmt: skip


def same_bits(found, expected):
    """-0.0 is not 0.0 here, and NaN is itself."""
    assert found.dtype == expected.dtype == torch.float32
    return torch.equal(
        found.contiguous().view(torch.int32), expected.contiguous().view(torch.int32)
    )


def assert_scored_alike(engine, batch, roll):
    new = roll.logprobs.shape[1]
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            values = engine.logprobs(
                roll.sequences, roll.attention_mask, micro_batch_size=batch.micro
            )
        assert values.requires_grad is enabled
        assert same_bits(values[:, -new:].detach(), roll.logprobs)


def assert_trained_alike(engine, batch, roll):
    """A step's logits are those of the training forward after the token before."""
    logits = engine(roll.sequences, roll.attention_mask).logits.detach()
    width = batch.ids.shape[1]
    columns = torch.arange(width).expand(len(logits), -1)
    prompts = roll.attention_mask[:, :width] == 1
    before = torch.where(prompts, columns, -1).amax(1)  # the prompt's last token, then its answers
    for step, made in enumerate(roll.logits):
        counts = roll.attention_mask[:, width + step] == 1
        predicted = logits[torch.arange(len(logits)), before]
        assert same_bits(made[counts], predicted[counts])
        before = torch.full_like(before, width + step)


def assert_made_alike_alone(engine, batch, roll):
    row, width = batch.row, batch.ids.shape[1]
    prompt = batch.ids[row // batch.each][batch.mask[row // batch.each] == 1]
    asked = {**batch.asked, "num_return_sequences": 1}
    if asked.get("sample_ids"):
        asked["sample_ids"] = [row]
    else:  # a prompt alone is the first of its kind
        row = next(
            n for n, (ids, mask) in enumerate(zip(roll.sequences, roll.attention_mask))
            if torch.equal(ids[:width][mask[:width] == 1], prompt)
        )  # fmt: skip
    mask = torch.ones_like(prompt)[None]  # a pad token in a prompt is a token like others
    alone = engine.generate(prompt[None], mask, return_logprobs=True, **asked)
    counted = int(alone.attention_mask[0, len(prompt) :].sum())
    assert roll.attention_mask[row, width:].sum() == counted
    tokens = alone.sequences[0, len(prompt) :]
    assert torch.equal(roll.sequences[row, width:][:counted], tokens[:counted])
    for made in ("logprobs", "processed_logprobs"):
        assert same_bits(roll[made][row, :counted], alone[made][0, :counted])


def assert_possible(roll):
    counts = roll.attention_mask[:, -roll.logprobs.shape[1] :] == 1
    for values in (roll.logprobs, roll.processed_logprobs):
        assert values[counts].isfinite().all()
        assert (values <= 0).all()
        assert not values[~counts].any()


@pytest.fixture(scope="module")
def engines(trained):
    """``engines(name, dtype, taught)``, each made once."""
    made = {}

    def engine(name, dtype, taught):
        key = (name, dtype, taught)
        if key not in made:
            model = trained(name) if taught else models.small(name)
            made[key] = accel.HybridEngine(model.to(DTYPES[dtype]))
        return made[key]

    return engine


def assert_exact(engine, count):
    model = engine.model

    @settings(max_examples=count, deadline=None, derandomize=True)
    @given(batches(model.config.vocab_size))
    def check(batch):
        model.gradient_checkpointing_disable()
        if batch.checkpointing:
            model.gradient_checkpointing_enable()
        engine.train(batch.checkpointing)
        torch.set_num_threads(batch.threads[0])
        roll = engine.generate(
            batch.ids, batch.mask, return_logprobs=True, output_logits=True, **batch.asked
        )
        torch.set_num_threads(batch.threads[1])
        assert_possible(roll)
        assert_scored_alike(engine, batch, roll)
        assert_trained_alike(engine, batch, roll)
        assert_made_alike_alone(engine, batch, roll)

    check()


pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning")


NAMES = ("name", "dtype", "taught")


@pytest.mark.parametrize(NAMES, cases(models.MAKERS, (False, True)))
def test_a_token_is_worth_the_same_wherever_it_is_looked_at(engines, name, dtype, taught):
    assert_exact(engines(name, dtype, taught), 30)


@pytest.mark.parametrize(NAMES, cases(models.ARCHITECTURES, (False,)))
def test_so_it_is_in_every_architecture(engines, name, dtype, taught):
    assert_exact(engines(name, dtype, taught), 4)


@pytest.mark.slow
@pytest.mark.parametrize(NAMES, cases(models.EVERY, (False, True)))
def test_a_token_is_worth_the_same_wherever_it_is_looked_at_200_times(engines, name, dtype, taught):
    assert_exact(engines(name, dtype, taught), 200)
