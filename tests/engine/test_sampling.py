"""Sampling: reproducible whatever the batch, and of the distribution that was asked for."""

import copy

import models
import numpy as np
import pytest
import torch
from agreement import assert_agree
from hypothesis import given
from hypothesis import strategies as st
from measures import seeded

import accel
from accel.engine.generation import sampling

IDS = seeded((4, 6), high=20)
MASK = torch.ones_like(IDS)
ASKED = {"do_sample": True, "top_k": 0, "max_new_tokens": 8, "seed": 7}


@pytest.fixture(scope="module")
def engine(request):
    """Of a vocabulary of 20 tokens, none of them rare."""
    maker = request.getfixturevalue("llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCEL_BACKEND", "cpu")
        patch.setenv("ACCEL_CACHE_DIR", str(request.getfixturevalue("build_cache")))
        yield accel.HybridEngine(maker(vocab_size=20, initializer_range=0.06))


def answers(engine, ids=IDS, mask=MASK, **asked):
    return engine.generate(ids, mask, **{**ASKED, **asked})[:, ids.shape[1] :]


# -- the same again ----------------------------------------------------------------------------


def test_a_seed_gives_the_same_answers_in_any_batch_and_order(engine):
    want = answers(engine)
    assert torch.equal(answers(engine), want)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(answers(engine, IDS[order], MASK[order]), want[order])
    for row in range(4):
        assert torch.equal(answers(engine, IDS[[row]], MASK[[row]]), want[[row]])


def test_a_seed_gives_the_same_answers_on_either_side_of_padding(engine):
    want, nothing = answers(engine), torch.zeros_like(IDS[:, :3])
    padding = seeded((4, 3), high=20, seed=9)
    left = answers(engine, torch.cat((padding, IDS), 1), torch.cat((nothing, MASK), 1))
    right = answers(engine, torch.cat((IDS, padding), 1), torch.cat((MASK, nothing), 1))
    assert torch.equal(left, want)
    assert torch.equal(right, want)


def test_a_longer_answer_begins_as_a_shorter_one(engine):
    assert torch.equal(answers(engine, max_new_tokens=20)[:, :8], answers(engine))


def test_other_seeds_give_other_answers(engine):
    made = [answers(engine, seed=seed) for seed in (7, 8, -1, 0, 2**64 - 2, 2**63)]
    assert len(torch.stack(made).flatten(1).unique(dim=0)) == len(made)


def test_a_prompt_seen_again_is_another_sample(engine):
    twice = torch.cat((IDS[:1], IDS[:1], IDS[1:2]))
    made = answers(engine, twice, MASK[:3])
    assert not torch.equal(made[0], made[1])
    assert torch.equal(made[[0, 2]], answers(engine)[:2])
    returned = answers(engine, IDS[:1], MASK[:1], num_return_sequences=2)
    assert torch.equal(returned, made[:2])


def test_sample_ids_tell_samples_apart_whatever_else_is_there(engine):
    same = IDS[:1].expand(4, 6)
    made = answers(engine, same, sample_ids=[5, 6, 5, -1])
    assert torch.equal(made[0], made[2])
    assert len(made.unique(dim=0)) == 3
    alone = answers(engine, same[:1], MASK[:1], sample_ids=torch.tensor([-1]))
    assert torch.equal(alone[0], made[3])


def test_without_a_seed_calls_differ_and_can_be_repeated(engine):
    asked = {**ASKED, "seed": None, "return_logprobs": True}
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (engine.generate(IDS, MASK, **asked) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert first.seed != second.seed
    assert not torch.equal(first.sequences, second.sequences)
    for made in (first, second):
        again = engine.generate(IDS, MASK, **{**asked, "seed": made.seed})
        assert torch.equal(again.sequences, made.sequences)


def test_torchs_seed_decides_where_none_is_given(engine):
    made = []
    for seed in (1, 1, 2):
        fresh = accel.HybridEngine(copy.deepcopy(engine.model))
        torch.manual_seed(seed)
        made.append(answers(fresh, seed=None))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


# -- uniform numbers ---------------------------------------------------------------------------

WORD = st.integers(0, 2**64 - 1)
SAMPLES = st.lists(st.tuples(WORD, st.integers(0, 1000)), min_size=1, max_size=5)


@given(WORD, SAMPLES, st.integers(0, 1000), st.integers(1, 9), st.randoms())
def test_a_number_is_a_function_of_seed_sample_and_position(seed, samples, start, count, drawn):
    made = sampling.uniforms(seed, samples, [start] * len(samples), count + 3)
    assert made.dtype is torch.float64
    assert ((made >= 0) & (made < 1)).all()
    order = drawn.sample(range(len(samples)), len(samples))
    starts = [start + drawn.randint(0, 3) for _ in samples]
    again = sampling.uniforms(seed, [samples[i] for i in order], starts, count)
    for row, (i, first) in enumerate(zip(order, starts)):
        assert torch.equal(again[row], made[i, first - start : first - start + count])


def test_numbers_of_other_seeds_samples_and_positions_are_other_numbers():
    made = [
        sampling.uniforms(seed, [(number, nth)], [start], 4)[0, 0].item()
        for seed in range(4) for number in range(4) for nth in range(4) for start in range(4)
    ]  # fmt: skip
    assert len(set(made)) == 256


def test_the_numbers_are_uniform():
    """Chi-squared over 20 bins, 19 degrees of freedom: above 43.820 once in a thousand
    (NIST/SEMATECH e-Handbook of Statistical Methods, table 1.3.6.7.4)."""
    made = sampling.uniforms(3, [(n, 0) for n in range(2000)], [0] * 2000, 5).flatten()
    counts = torch.histc(made, 20, 0, 1)
    assert chi_squared(counts, torch.full((20,), 0.05)) < 43.820


def chi_squared(counts, probabilities):
    expected = probabilities.double() * counts.sum()
    return ((counts - expected).square() / expected).sum().item()


LARGEST = 1 - 2.0**-48
SCORES = st.floats(-1e4, 1e4, width=32) | st.just(float("-inf")) | st.floats(-1, 1, width=32)


@given(
    st.lists(SCORES, min_size=1, max_size=40).filter(lambda row: max(row) > float("-inf")),
    st.sampled_from((0.0, 2.0**-48, 0.5, LARGEST)) | st.integers(0, 2**48 - 1).map(
        lambda n: n * 2.0**-48
    ),
)  # fmt: skip
def test_a_token_of_probability_zero_is_never_picked(row, uniform):
    scores = torch.tensor([row])
    (picked,) = sampling.pick(scores, torch.tensor([uniform], dtype=torch.float64)).tolist()
    assert scores.double().softmax(-1)[0, picked] > 0


def test_the_extremes_pick_the_first_and_the_last_token_that_can_be():
    scores = torch.full((2, 50_000), float("-inf"))
    scores[:, 10:49_990] = 0
    picked = sampling.pick(scores, torch.tensor([0, LARGEST], dtype=torch.float64))
    assert picked.tolist() == [10, 49_989]


# -- the distribution --------------------------------------------------------------------------

# 0.999 quantiles of chi-squared by degrees of freedom (the table above).
CRITICAL = {
    1: 10.828, 2: 13.816, 3: 16.266, 4: 18.467, 5: 20.515, 6: 22.458, 7: 24.322, 8: 26.125,
    9: 27.877, 10: 29.588, 11: 31.264, 12: 32.910, 13: 34.528, 14: 36.123, 15: 37.697,
    16: 39.252, 17: 40.790, 18: 42.312, 19: 43.820,
}  # fmt: skip


def as_they_are(p):
    return torch.ones_like(p, dtype=torch.bool)


def best(count):
    return lambda p: p >= p.topk(count).values[-1]


def typical(p):
    """The fewest tokens nearest to the entropy in surprise that reach half of all."""
    surprise = (-p.log() + (p * p.log()).sum()).abs()
    order = surprise.argsort()
    return torch.isin(torch.arange(20), order[: int((p[order].cumsum(0) < 0.5).sum()) + 1])


# What is asked for, and the temperature and which tokens of what probabilities stay with it.
PROCESSED = [
    ({"top_k": 0}, 1.0, as_they_are),
    ({"top_k": 0, "temperature": 0.7}, 0.7, as_they_are),
    ({"top_k": 10}, 1.0, best(10)),
    ({"top_k": 10, "temperature": 2.0}, 2.0, best(10)),
    ({"min_p": 0.5}, 1.0, lambda p: p >= 0.5 * p.max()),
    ({"min_p": 0.5, "temperature": 2.0}, 2.0, lambda p: p >= 0.5 * p.max()),
    ({"typical_p": 0.5}, 1.0, typical),
    ({"epsilon_cutoff": 0.05}, 1.0, lambda p: p >= 0.05),
]


@pytest.mark.parametrize(
    ("asked", "temperature", "stay"), PROCESSED, ids=[str(asked) for asked, *_ in PROCESSED]
)
def test_tokens_are_drawn_as_often_as_their_probability_says(engine, asked, temperature, stay):
    asked = {**ASKED, **asked, "max_new_tokens": 1, "num_return_sequences": 4000}
    made = engine.generate(IDS[:1], MASK[:1], output_logits=True, **asked)
    of_all = (made.logits[0][0].double() / temperature).softmax(0)
    kept = stay(of_all)
    probabilities = of_all[kept] / of_all[kept].sum()
    counts = made.sequences[:, -1].bincount(minlength=20)
    assert counts[~kept].sum() == 0
    assert probabilities.max() > 1.2 * probabilities.min()
    assert chi_squared(counts[kept], probabilities) < CRITICAL[len(probabilities) - 1]
    assert bool(kept.all()) is (stay is as_they_are)


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_every_architecture_draws_as_transformers_logits_say(name):
    model = models.small(name, vocab_size=20, initializer_range=0.06)
    probabilities = model(IDS[:1]).logits[0, -1].double().softmax(-1)
    made = answers(
        accel.HybridEngine(model), IDS[:1], MASK[:1], max_new_tokens=1, num_return_sequences=2000
    )
    assert chi_squared(made.flatten().bincount(minlength=20), probabilities) < CRITICAL[19]


def test_top_p_draws_from_the_fewest_tokens_that_reach_it(engine):
    asked = {**ASKED, "top_p": 0.3, "max_new_tokens": 1, "num_return_sequences": 500}
    made = engine.generate(IDS[:1], MASK[:1], output_logits=True, return_logprobs=True, **asked)
    probabilities, order = made.logits[0][0].softmax(-1).sort(descending=True)
    nucleus = order[: int((probabilities.cumsum(0) < 0.3).sum()) + 1]
    drawn = made.sequences[:, -1]
    assert set(drawn.tolist()) == set(nucleus.tolist())
    assert 1 < len(nucleus) < 20
    share = probabilities[: len(nucleus)].sum().log()
    want = made.logprobs - share
    assert_agree(made.processed_logprobs, want, operations=8)  # a logarithm and a sum on each side
