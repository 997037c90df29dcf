"""Splitting dimensions and tensors, and bad input to all of tiling."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from accel import ops
from accel.errors import OpArgumentError
from accel.layers.linear import Linear
from accel.layers.tiled_linear import TiledLinear
from accel.layers.tiling import partition_uniform, split_tensor_along_last_dim


@pytest.fixture(autouse=True)
def torch_serves():
    with ops.use("*=torch", exact=False):
        yield


@given(items=st.integers(0, 50), parts=st.integers(1, 60))
def test_parts_are_consecutive_and_nearly_equal_with_the_larger_ones_first(items, parts):
    boundaries = partition_uniform(items, parts)
    sizes = [b - a for a, b in pairwise(boundaries)]
    assert (boundaries[0], boundaries[-1], len(sizes)) == (0, items, parts)
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


def test_a_tensor_is_split_into_views_or_contiguous_parts():
    x = torch.randn(2, 6)
    one, other = split_tensor_along_last_dim(x, [2, 4])
    assert torch.equal(torch.cat((one, other), -1), x)
    assert one._base is x
    assert not other.is_contiguous()
    assert all(p.is_contiguous() for p in split_tensor_along_last_dim(x, [2, 4], True))


# -- bad input ---------------------------------------------------------------------------------

X = torch.ones(2, 6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: TiledLinear(6, 4, in_splits=7), r"in_splits .* \[1, in_features\] = \[1, 6\]"),
        (lambda: TiledLinear(6, 4, in_splits=0), "in_splits must be in range.*found 0"),
        (lambda: TiledLinear(6, 4, out_splits=5), r"out_splits .* \[1, 4\]; found 5"),
        (lambda: TiledLinear(6, 4, in_splits=2)(X[:, :5]), r"\[\.\.\., 6\]"),
        (lambda: TiledLinear(6, 4)(X[:, :5]), r"\[\.\.\., 6\]"),
        (
            lambda: TiledLinear(6, 4, in_splits=2, input_is_already_split=True)([X] * 3),
            "in_splits = 2 tensors; found 3",
        ),
        (
            lambda: TiledLinear(6, 4, in_splits=2, input_is_already_split=True)(X),
            "in_splits = 2 tensors; found 1",
        ),
        (
            lambda: TiledLinear(6, 4, in_splits=2, input_is_already_split=True)([X, X]),
            "last dimension",
        ),
        (lambda: TiledLinear(6, 4, in_splits=2)(X.int()), "must be one of"),
        (lambda: TiledLinear(6, 4, in_splits=2)(torch.ones(())), r"\[\.\.\., 6\]"),
        (lambda: TiledLinear(6, 4, in_splits=2, act="silu")(X), "partial sum"),
        (lambda: TiledLinear.from_linear(Linear(6, 4, act="silu")), "no activation"),
        (lambda: partition_uniform(3, 0), "parts must be|parts at least 1"),
        (lambda: partition_uniform(-1, 2), "items must be at least 0"),
        (lambda: split_tensor_along_last_dim(X, [2, 3]), r"add up .* \[2, 3\]"),
        (lambda: split_tensor_along_last_dim(X, [8, -2]), r"add up .* \[8, -2\]"),
        (lambda: split_tensor_along_last_dim(torch.ones(()), [1]), "last dimension"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(OpArgumentError, match=says):
        call()


def test_one_tensor_is_wanted_where_the_input_is_not_split():
    with pytest.raises(TypeError, match="out_splits must be an int, not float"):
        TiledLinear(6, 4, out_splits=2.0)
    with pytest.raises(TypeError, match="input_is_already_split=True"):
        TiledLinear(6, 4, in_splits=2)([X[:, :3], X[:, 3:]])


def test_only_a_tensor_is_split():
    with pytest.raises(TypeError, match=r"tensor must be a torch\.Tensor, not list"):
        split_tensor_along_last_dim([1, 2], [1, 1])


def test_a_size_that_a_compiler_leaves_open_is_divided():
    def tiles(x):
        boundaries = partition_uniform(x.shape[-1], 3)
        return split_tensor_along_last_dim(x, [b - a for a, b in pairwise(boundaries)])

    compiled = torch.compile(tiles, backend="eager", fullgraph=True, dynamic=True)
    assert [tile.shape[-1] for tile in compiled(torch.ones(2, 7))] == [3, 2, 2]
    assert [tile.shape[-1] for tile in compiled(torch.ones(2, 11))] == [4, 4, 3]
