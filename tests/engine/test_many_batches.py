"""Two hundred random batches for every architecture, beside transformers: tokens, logits and the
distribution they make. Exactness has its own in test_exactness.py."""

import copy
import math
from contextlib import nullcontext

import measures
import models
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from measures import excess, positions

import accel

pytestmark = pytest.mark.usefixtures("_one_thread")

KINDS = {False: "random", True: "trained"}
CASES = [
    pytest.param(name, taught, id=f"{name}-{KINDS[taught]}")
    for taught in KINDS for name in models.EVERY
]  # fmt: skip
EACH = 150  # answers to a prompt, of which the tokens are counted
FEWEST = 5  # expected of a bin (Cochran 1954)


@st.composite
def prompts(draw, vocab, rows=5):
    """(ids, mask, seed), padded on the left; text for half of them."""
    lengths = draw(st.lists(st.integers(1, 48), min_size=1, max_size=rows))
    seed = draw(st.integers(0, 2**32 - 1))
    ids = torch.randint(
        vocab, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed)
    )
    if draw(st.booleans()):
        text = models.text() % vocab
        start = draw(st.integers(0, len(text) - ids.numel()))
        ids = text[start : start + ids.numel()].view_as(ids)
    mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    return ids, mask, seed


def over(count, strategy, check):
    suppressed = [HealthCheck.too_slow, HealthCheck.data_too_large]
    configured = settings(
        max_examples=count, deadline=None, derandomize=True, suppress_health_check=suppressed
    )
    configured(given(strategy)(check))()


@pytest.fixture(scope="module")
def pairs(trained):
    """``pairs(name, taught)``: transformers' model, its float64, and an engine of a copy."""
    made = {}

    def pair(name, taught):
        if (name, taught) not in made:
            theirs = trained(name) if taught else models.small(name, initializer_range=0.15)
            engine = accel.HybridEngine(copy.deepcopy(theirs))
            made[name, taught] = theirs, measures.widened(theirs), engine
        return made[name, taught]

    return pair


def logits_of(model, ids, mask, mode=None):
    """transformers' of the real tokens."""
    with torch.no_grad(), mode or nullcontext():
        found = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask)).logits
    return found[mask.bool()]


# -- tokens ------------------------------------------------------------------------------------


def is_a_tie(pair, before, one, other):
    """Whether float64 has the two tokens nearer to each other than either's logits are to it."""
    theirs, wide, engine = pair
    ids, mask = before[None], torch.ones_like(before)[None]
    exact, mine, ours = (
        found[-1].double()
        for found in (
            logits_of(wide, ids, mask, measures.Widened()), logits_of(theirs, ids, mask),
            engine(ids, mask).logits.detach()[0],
        )
    )  # fmt: skip
    off = (mine - exact).abs().max() + (ours - exact).abs().max()
    return (exact[one] - exact[other]).abs() <= 2 * off


def assert_same_tokens(pair, count):
    theirs, _, engine = pair
    ties = []

    def check(given):
        (ids, mask, seed), new, ends = given
        asked = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        asked |= {"attention_mask": mask, "eos_token_id": ends}
        want, found = theirs.generate(ids, **asked), engine.generate(ids, **asked)
        if torch.equal(found, want):
            return
        width = min(found.shape[1], want.shape[1])
        for row in range(len(ids)):
            apart = (found[row, :width] != want[row, :width]).nonzero()
            if not len(apart):
                continue
            column = int(apart[0])
            before = found[row, :column][torch.cat((mask[row], mask.new_ones(new)))[:column] == 1]
            assert is_a_tie(pair, before, found[row, column], want[row, column])
            ties.append(seed)

    vocab = theirs.config.vocab_size
    ends = st.none() | st.lists(st.integers(0, vocab - 1), min_size=1, max_size=4)
    over(count, st.tuples(prompts(vocab), st.integers(1, 24), ends), check)
    assert len(ties) <= count // 50


# -- logits ------------------------------------------------------------------------------------


def assert_near_float64(pair, count):
    """Of all batches together: which of two correct orders errs less in one is chance."""
    theirs, wide, engine = pair
    gathered = []

    def check(given):
        ids, mask, _ = given
        with torch.no_grad():
            ours = engine(ids, mask).logits[mask.bool()]
        exact = logits_of(wide, ids, mask, measures.Widened())
        gathered.append((ours, logits_of(theirs, ids, mask), exact))

    over(count, prompts(theirs.config.vocab_size), check)
    assert len(gathered) >= count
    ours, mine, exact = map(torch.cat, zip(*gathered))
    assert excess(ours, mine, exact) <= 0


# -- distributions -----------------------------------------------------------------------------


def counted(tokens, probabilities):
    """Chi-squared of these tokens and its degrees of freedom, rare ones counted as one."""
    expected, order = (probabilities * len(tokens)).sort(descending=True)
    seen = tokens.bincount(minlength=len(expected))[order].double()
    common = int((expected >= FEWEST).sum())
    bins = [(seen[:common], expected[:common]), (seen[common:].sum(), expected[common:].sum())]
    (seen, expected), (rest, rare) = bins
    if rare >= FEWEST:
        seen, expected = torch.cat((seen, rest[None])), torch.cat((expected, rare[None]))
    elif len(expected):
        seen[-1] += rest
        expected[-1] += rare
    else:
        return 0.0, 0
    return ((seen - expected).square() / expected).sum().item(), len(expected) - 1


def critical(freedom, deviations=4.265):
    """Chi-squared's quantile that is passed once in 100,000 times (Wilson and Hilferty 1931)."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + deviations * math.sqrt(part)) ** 3


def chi_squared(pair, count, asked_for=None):
    """Over as many batches: (the sum, its degrees of freedom)."""
    theirs, _, engine = pair
    found = []

    def check(given):
        (ids, mask, seed), temperature, top_k = given
        with torch.no_grad():
            logits = theirs(ids, attention_mask=mask, position_ids=positions(mask)).logits[:, -1]
        logits = logits.double() / temperature
        if top_k:
            logits[logits < logits.topk(top_k).values[:, -1:]] = -math.inf
        made = engine.generate(
            ids, mask, max_new_tokens=1, do_sample=True, num_return_sequences=EACH, seed=seed,
            temperature=asked_for or temperature, top_k=top_k,
        )  # fmt: skip
        for tokens, row in zip(made[:, -1].view(-1, EACH), logits):
            probabilities = row.softmax(-1)
            assert probabilities[tokens].all(), "only what can be is drawn"
            found.append(counted(tokens, probabilities))

    strategy = st.tuples(
        prompts(theirs.config.vocab_size, rows=3),
        st.floats(0.5, 2),
        st.just(0) | st.integers(2, 20),
    )
    over(count, strategy, check)
    return tuple(map(sum, zip(*found)))


def assert_drawn_alike(pair, count):
    value, freedom = chi_squared(pair, count)
    assert freedom > count
    assert value < critical(freedom)


def test_another_temperature_is_another_distribution(pairs):
    value, freedom = chi_squared(pairs("llama", False), 8, asked_for=1.0)
    assert value > critical(freedom)


def test_logits_of_another_epsilon_are_not_near(pairs):
    theirs, wide, _ = pairs("llama", False)
    other = models.small("llama", initializer_range=0.15, rms_norm_eps=2e-6)
    with pytest.raises(AssertionError):
        assert_near_float64((theirs, wide, accel.HybridEngine(other)), 5)


@pytest.mark.parametrize("assert_so", [assert_same_tokens, assert_near_float64, assert_drawn_alike])
def test_some_batches_are_as_in_transformers(pairs, assert_so):
    assert_so(pairs("llama", False), 5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "taught"), CASES)
def test_200_batches_have_transformers_tokens(pairs, name, taught):
    assert_same_tokens(pairs(name, taught), 200)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "taught"), CASES)
def test_200_batches_have_logits_as_near_to_float64_as_transformers_own(pairs, name, taught):
    assert_near_float64(pairs(name, taught), 200)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "taught"), CASES)
def test_200_batches_are_drawn_as_transformers_logits_say(pairs, name, taught):
    assert_drawn_alike(pairs(name, taught), 200)
