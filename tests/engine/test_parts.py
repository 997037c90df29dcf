"""The engine's parts: where tokens lie, and what keeps their keys and values."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import accel
from accel.engine import request as requests
from accel.engine.cache import BUCKET, KVCache
from accel.engine.sequences import Sequences
from accel.errors import CapacityError, OpArgumentError

HOST = torch.device("cpu")


def sequences(rows, positions=None):
    mask = torch.tensor(rows)
    given = None if positions is None else torch.tensor(positions)
    return Sequences.of(mask, mask.shape, HOST, given)


# -- sequences ---------------------------------------------------------------------------------

MASKS = st.integers(1, 6).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=1, max_size=5
    )
)


@given(MASKS)
def test_real_tokens_are_packed_row_by_row_and_counted_from_the_first(rows):
    found = sequences(rows)
    mask = torch.tensor(rows).bool()
    batch, length = mask.shape
    names = torch.arange(batch * length).view(batch, length)
    packed = found.pack(names)
    assert packed.tolist() == names[mask].tolist()
    assert found.unpack(packed + 1).tolist() == (names + 1).where(mask, 0).tolist()
    for row, (start, count, first, keys) in enumerate(found.spans.tolist()):
        assert (first, keys) == (start, count)
        assert packed[start : start + count].tolist() == names[row][mask[row]].tolist()
        assert found.positions[row][mask[row]].tolist() == list(range(count))


@given(MASKS)
def test_successions_pair_neighbours_whatever_padding_lies_between(rows):
    before, after = sequences(rows).successions()
    want = []
    for row, line in enumerate(rows):
        real = [row * len(line) + column for column, one in enumerate(line) if one]
        want += pairwise(real)
    assert list(zip(before.tolist(), after.tolist())) == want


@given(MASKS.filter(lambda rows: all(map(any, rows))))
def test_the_last_row_of_each_sequence(rows):
    found = sequences(rows)
    mask = torch.tensor(rows).bool()
    columns = torch.arange(mask.shape[1]).expand_as(mask)
    want = [int(line[real].max()) for line, real in zip(columns, mask)]
    assert found.pack(columns)[found.last()].tolist() == want


def test_a_mask_of_ones_is_no_mask():
    for mask in (None, torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)):
        found = Sequences.of(mask, (2, 3), HOST)
        assert found.rows is None
        assert found.spans.tolist() == [[0, 3, 0, 3], [3, 3, 3, 3]]


@pytest.mark.parametrize("mask", [torch.ones(2, 2), torch.ones(3), torch.ones(2, 1, 3, 3)])
def test_a_mask_of_another_shape_is_refused(mask):
    with pytest.raises(OpArgumentError, match=r"attention_mask must be \[2, 3\]"):
        Sequences.of(mask, (2, 3), HOST)


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan"), float("-inf")])
def test_a_mask_of_other_numbers_is_refused(value):
    with pytest.raises(OpArgumentError, match="ones and zeros only"):
        Sequences.of(torch.tensor([[1.0, value, 1.0]]), (1, 3), HOST)


PLACED = [
    ([[1, 1, 1]], [[5, 6, 7]], [[5, 6, 7]]),
    ([[1, 1, 1], [1, 1, 1]], [[5, 6, 7]], [[5, 6, 7], [5, 6, 7]]),
    ([[0, 1, 1]], [[1, 3, 4]], [[0, 3, 4]]),
    ([[0, 0, 1, 1]], [[9, 9, 0, 1]], [[0, 0, 0, 1]]),
    ([[1, 1, 0]], [[3, 4, 4]], [[3, 4, 0]]),
    ([[1, 0, 1]], [[5, 9, 6]], [[5, 0, 6]]),
    ([[1, 0, 0, 1, 0]], [[0, 7, 7, 1, 7]], [[0, 0, 0, 1, 0]]),
]


@pytest.mark.parametrize(("rows", "given_", "want"), PLACED, ids=str)
def test_given_positions_hold_and_are_zero_where_padded(rows, given_, want):
    assert sequences(rows, given_).positions.tolist() == want


@pytest.mark.parametrize(
    ("rows", "given_"),
    [([[1, 1, 1]], [[0, 1, 0]]), ([[1, 1, 1]], [[0, 2, 4]]), ([[0, 1, 1]], [[0, 1, 1]]),
     ([[1, 0, 1]], [[0, 1, 2]])],
    ids=str,
)  # fmt: skip
def test_positions_that_do_not_count_one_by_one_are_refused(rows, given_):
    with pytest.raises(OpArgumentError, match="a row of its own"):
        sequences(rows, given_)


# -- the cache ---------------------------------------------------------------------------------


@pytest.fixture
def spec(llama):
    """2 layers, 2 heads of keys, 16 numbers each."""
    return accel.plan(llama()).spec


LIKE = torch.zeros(1)
PER_TOKEN = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, numbers, bytes


def reserved(spec, batch=2, tokens=10, like=LIKE, limit=None):
    cache = KVCache(limit)
    cache.reserve(spec, batch, tokens, like)
    return cache


@pytest.mark.parametrize(
    ("tokens", "capacity"),
    [(1, BUCKET), (BUCKET, BUCKET), (BUCKET + 1, 2 * BUCKET), (5 * BUCKET, 5 * BUCKET)],
)
def test_room_grows_in_buckets(spec, tokens, capacity):
    cache = reserved(spec, 3, tokens)
    assert cache.capacity == capacity
    assert cache.bytes == 3 * capacity * PER_TOKEN
    assert cache.lengths.tolist() == [0, 0, 0]


def test_what_is_large_enough_is_used_again(spec):
    cache = reserved(spec, 4, 100)
    keys = cache._keys[0]
    for batch, tokens in ((4, 100), (2, 100), (8, 10), (1, 500)):
        cache.reserve(spec, batch, tokens, LIKE)
        assert cache._keys[0] is keys
        assert cache.lengths.tolist() == [0] * batch
    cache.reserve(spec, 9, 100, LIKE)
    assert cache._keys[0] is not keys


def test_another_dtype_needs_another_cache(spec):
    cache = reserved(spec)
    cache.reserve(spec, 2, 10, LIKE.bfloat16())
    assert cache._keys[0].dtype is torch.bfloat16
    assert cache.bytes == 2 * BUCKET * PER_TOKEN // 2


def test_the_limit_is_what_may_be_allocated_and_not_a_byte_more(spec):
    needed = 2 * BUCKET * PER_TOKEN
    assert reserved(spec, limit=needed).bytes == needed
    cache = reserved(spec, 1, 10, limit=needed - 1)
    with pytest.raises(CapacityError, match=f"takes {needed} bytes, .* permits {needed - 1}"):
        cache.reserve(spec, 2, 10, LIKE)
    assert cache.bytes == needed // 2
    assert cache.lengths.tolist() == [0]


def test_a_released_cache_holds_nothing(spec):
    cache = reserved(spec)
    cache.release()
    assert (cache.bytes, cache.capacity, cache.lengths) == (0, 0, None)
    cache.reserve(spec, 1, 1, LIKE)
    assert cache.bytes == BUCKET * PER_TOKEN


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copy_is_empty_with_the_same_limit(spec, copied):
    cache = reserved(spec, limit=1 << 30)
    other = copied(cache)
    assert (other.bytes, other.limit) == (0, 1 << 30)
    assert cache.bytes > 0


def test_each_token_has_a_slot_of_its_sequence_at_its_position(spec):
    cache = reserved(spec)
    first = cache.admit(sequences([[0, 1, 1], [1, 1, 1]]))
    assert first.slots.tolist() == [0, 1, BUCKET, BUCKET + 1, BUCKET + 2]
    assert first.spans.tolist() == [[0, 2, 0, 2], [2, 3, BUCKET, 3]]
    then = cache.admit(Sequences.of(None, (2, 1), HOST))
    assert then.positions.tolist() == [[2], [3]]
    assert then.slots.tolist() == [2, BUCKET + 3]
    assert then.spans.tolist() == [[0, 1, 0, 3], [1, 1, BUCKET, 4]]
    k = torch.arange(2 * 2 * 16.0).view(2, 2, 16)
    keys, values = cache.extend(1, then.slots, k, -k)
    assert torch.equal(keys[[2, BUCKET + 3]], k)
    assert torch.equal(values[[2, BUCKET + 3]], -k)


# -- requests ----------------------------------------------------------------------------------

IDS = torch.ones(2, 5, dtype=torch.int64)


def read(llama, config=None, **settings):
    return requests.read(llama(), IDS, config, settings)


def test_a_request_that_asks_for_nothing_is_greedy_and_ends_after_twenty(llama):
    found = read(llama)
    assert (found.max_new_tokens, found.process, found.eos, found.pad) == (20, None, (), None)
    assert (found.samples_each, found.output_logits, found.as_object) == (1, False, False)


@pytest.mark.parametrize(
    ("asked", "filler"),
    [({"pad_token_id": 5, "eos_token_id": 3}, 5), ({"eos_token_id": [3, 4]}, 3), ({}, 0)],
    ids=str,
)
def test_behind_an_end_stands_the_padding_or_the_end(llama, asked, filler):
    assert read(llama, **asked).filler == filler


def test_reading_a_request_changes_no_configuration(llama):
    from transformers import GenerationConfig

    model, config = llama(), GenerationConfig(max_length=9)
    before = config.to_dict(), model.generation_config.to_dict()
    requests.read(model, IDS, config, {"do_sample": True, "temperature": 0.5, "top_p": 0.5})
    assert (config.to_dict(), model.generation_config.to_dict()) == before


def test_processors_are_those_asked_for(llama):
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    plain = read(llama, do_sample=True, top_k=0)
    assert plain.process(IDS, logits) is logits
    cut = read(llama, do_sample=True, top_k=2, temperature=0.5).process(IDS, logits)
    assert cut.tolist() == [[float("-inf"), float("-inf"), 4.0, 6.0]]
