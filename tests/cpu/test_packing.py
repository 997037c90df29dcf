"""Weights that oneDNN packs: anew at every call, or kept where the user says that they stay."""

import pytest
import torch
from instruction_sets import randn, same_bits

from accel import ops
from accel_cpu.packing import frozen_weights

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN"
)


@pytest.fixture(autouse=True)
def _onednn():
    with torch.no_grad(), ops.use("linear=accel_cpu.onednn", exact=False):
        yield


def test_a_frozen_weight_is_packed_once_and_forgotten_behind_the_block():
    x, w = randn(4, 16), randn(6, 16, seed=1)
    first = ops.linear(x, w)
    with frozen_weights():
        with frozen_weights():
            assert same_bits(ops.linear(x, w), first)
        w.data.zero_()
        assert same_bits(ops.linear(x, w), first)
    assert same_bits(ops.linear(x, w), torch.zeros(4, 6))


def test_another_view_of_the_same_memory_is_another_weight():
    x, both = randn(4, 6), randn(6, 6, seed=1)
    with frozen_weights():
        found = [ops.linear(x, w) for w in (both, both.t(), both[:3])]
    for y, w in zip(found, (both, both.t(), both[:3])):
        assert same_bits(y, ops.linear(x, w))


def test_memory_that_a_weight_has_left_is_not_taken_for_it():
    x, w = randn(4, 16), randn(6, 16, seed=1)
    with frozen_weights():
        ops.linear(x, w)
        w.data = w.clone()  # as when a model goes to another device and comes back
        others = [randn(6, 16, seed=2 + seed) for seed in range(9)]  # of the memory that is free
        found = [ops.linear(x, other) for other in others]
    for y, other in zip(found, others):
        assert same_bits(y, ops.linear(x, other))
