"""reuse_prefix: what the cache holds since the last rollout is not computed again, to the bits that
computing it gives."""

import models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from measures import seeded
from test_exactness import same_bits
from turns import ASKED, again, assert_same, engine_of, first

import accel
from accel.engine.cache import BUCKET

pytestmark = pytest.mark.usefixtures("_one_thread")


def padded(rows, left=True):
    """(ids, mask) of lists of tokens; what stands where there is padding is a token too."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), 3), torch.zeros(len(rows), width, dtype=torch.int64)
    for row, tokens in enumerate(rows):
        there = slice(width - len(tokens), None) if left else slice(len(tokens))
        ids[row, there], mask[row, there] = torch.tensor(tokens), 1
    return ids, mask


def said(roll):
    """Each row's tokens, prompt and answer."""
    return [ids[mask == 1].tolist() for ids, mask in zip(roll.sequences, roll.attention_mask)]


def drawn(count, seed):
    return seeded((count,), high=models.VOCAB, seed=seed).tolist()


def common(one, other):
    size = min(len(one), len(other))
    return next((i for i in range(size) if one[i] != other[i]), size)


@st.composite
def turns(draw):
    """Of each turn the rows' beginnings, (row of the turn before, how many of its tokens), how many
    tokens are new, and what else is asked for."""
    found = []
    for _ in range(draw(st.integers(2, 4))):
        rows = draw(st.lists(
            st.tuples(st.integers(0, 9), st.integers(0, 90) | st.just(1000), st.integers(1, 40)),
            min_size=1, max_size=5,
        ))  # fmt: skip
        asked = {"max_new_tokens": draw(st.integers(1, 30)), "do_sample": draw(st.booleans())}
        if asked["do_sample"]:
            asked |= {"seed": draw(st.integers(0, 9)), "num_return_sequences": draw(
                st.integers(1, 2))}  # fmt: skip
        asked["eos_token_id"] = draw(st.none() | st.just(list(range(0, models.VOCAB, 12))))
        found.append((rows, asked, draw(st.booleans())))
    return found


def converse(engine, plain, talk, limited):
    """Every turn by reuse and without, bit for bit; how much was reused in all."""
    before, held, total = [drawn(5, 1)], [], 0
    for turn, (rows, asked, left) in enumerate(talk):
        prompts = [
            before[which % len(before)][:count] + drawn(new, turn * 10 + place)
            for place, (which, count, new) in enumerate(rows)
        ]
        asked = {**asked, "return_logprobs": True, "output_logits": True}
        made = engine.generate(*padded(prompts, left), reuse_prefix=True, **asked)
        want = plain.generate(*padded(prompts, left), **asked)
        assert_same(made, want)
        assert all(map(same_bits, made.logits, want.logits))
        if not limited:
            distinct = {tuple(prompt): prompt for prompt in prompts}.values()
            near = [max([0, *(common(p[:-1], other) for other in held)]) for p in distinct]
            assert made.reused == sum(near)
        total += made.reused
        before = said(made)
        held = [tokens[:-1] for tokens in before]
    return total


def assert_goes_on(name, sequences, count):
    """``sequences``: how many the cache has room for, or None."""
    model, total = models.small(name, initializer_range=0.15), []
    config, heads = model.config, model.config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    room = 2 * 2 * heads * width * 4 * 2 * BUCKET  # keys and values, layers; fp32; two buckets
    limit = sequences and sequences * room
    plain = accel.HybridEngine(models.small(name, initializer_range=0.15))

    @settings(max_examples=count, deadline=None, derandomize=True)
    @given(turns())
    def check(talk):
        engine = accel.HybridEngine(model, config={"kv_cache_bytes": limit, "check_exact": True})
        total.append(converse(engine, plain, talk, limit is not None))

    check()
    assert sum(total) > 10 * count


@pytest.mark.parametrize("sequences", [None, 3], ids=["whole", "waves"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_conversation_goes_on_bit_for_bit(name, sequences):
    assert_goes_on(name, sequences, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.EVERY)
def test_a_conversation_goes_on_bit_for_bit_in_every_architecture(name):
    assert_goes_on(name, None, 30)
    assert_goes_on(name, 3, 30)


def test_what_is_held_is_what_was_fed():
    engine = engine_of()
    roll = first(engine)
    assert (roll.reused, "came right before" in roll.not_reused) == (0, True)
    made = again(engine, roll)
    assert (made.reused, made.not_reused) == (3 * (9 + 6 - 1), None)
    assert engine.stats()["generate"]["reused"] == made.reused
    same = engine.generate(seeded((3, 9)), reuse_prefix=True, **ASKED)  # again: all but a token
    assert same.reused == 3 * 8
    assert_same(same, roll)
    other = engine.generate(seeded((2, 9), seed=5), reuse_prefix=True, **ASKED)
    assert (other.reused, other.not_reused) == (0, None)
    assert "reused" not in accel.HybridEngine(models.llama()).stats()


def test_fewer_forwards_are_not_made_but_shorter_ones():
    engine, widths = engine_of(), []
    engine.model.model.layers[0].register_forward_pre_hook(
        lambda module, given: widths.append(given[0].shape[1])
    )
    roll = first(engine)
    widths.clear()
    again(engine, roll)
    assert widths == [1 + 2] + [1] * 5  # the answer's last token, and the new ones
