"""The engine's parts: where tokens lie, and what keeps their keys and values."""

import copy
import pickle
from dataclasses import replace
from itertools import pairwise

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import accel
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


# -- the spec ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"parallel": True, "norms_sums": True}, r"at most one of .*'parallel', 'norms_sums'"),
        ({"qkv_rows": "interleaved"}, "'stacked' or 'grouped'; found 'interleaved'"),
    ],
    ids=str,
)
def test_a_layer_that_contradicts_itself_is_refused(llama, change, says):
    with pytest.raises(ValueError, match=says):
        replace(accel.plan(llama()).spec.layer, **change)


def test_a_gate_within_another_projection_needs_no_op_of_its_own():
    """phi3's: an exact kernel for gated_linear is not asked for where nothing calls it."""
    assert "gated_linear" not in accel.plan(models.small("phi3")).served_by
    assert "gated_linear" in accel.plan(models.small("llama")).served_by


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


def test_sequences_that_stay_stay_where_they_are(spec):
    cache = reserved(spec, batch=3)
    cache.admit(sequences([[0, 1, 1], [1, 1, 1], [0, 0, 1]]))
    cache.keep(torch.tensor([1, 2]))
    then = cache.admit(Sequences.of(None, (2, 1), HOST))
    assert then.spans.tolist() == [[0, 1, BUCKET, 4], [1, 1, 2 * BUCKET, 2]]
    assert then.slots.tolist() == [BUCKET + 3, 2 * BUCKET + 1]


def test_a_fork_has_copies_of_what_it_names(spec):
    cache = reserved(spec, batch=4)
    cache.keep(slice(2))
    fed = cache.admit(sequences([[0, 1, 1], [1, 1, 1]]))
    k = torch.arange(5 * 2 * 16.0).view(5, 2, 16)
    for layer in range(2):
        cache.extend(layer, fed.slots, k, -k)
    cache.fork(torch.tensor([0, 0, 1, 0]))
    assert cache.lengths.tolist() == [2, 2, 3, 2]
    assert cache.starts.tolist() == [0, BUCKET, 2 * BUCKET, 3 * BUCKET]
    for rows, want in ((cache._keys[1], k), (cache._values[1], -k)):
        for start, own in zip(cache.starts, (want[:2], want[:2], want[2:], want[:2])):
            assert torch.equal(rows[start : start + len(own)], own)


def test_the_limit_has_room_for_so_many(spec):
    assert reserved(spec).most(spec, 10, LIKE) is None
    assert KVCache(3 * BUCKET * PER_TOKEN).most(spec, 10, LIKE) == 3
    assert KVCache(3 * BUCKET * PER_TOKEN).most(spec, BUCKET + 1, LIKE) == 1
    with pytest.raises(CapacityError, match="1 sequences of 65 tokens takes"):
        KVCache(BUCKET * PER_TOKEN).most(spec, BUCKET + 1, LIKE)


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
