"""A linear layer in tiles: what subclasses and the tiles of others change about it."""

import pytest
import torch
from linear_twins import F64, assert_twins, drawn, plain
from torch import nn

from accel import ops
from accel.errors import OpArgumentError
from accel.layers.tiled_bias import TiledLinearReturnBias
from accel.layers.tiled_linear import TiledLinear


@pytest.fixture(autouse=True)
def torch_serves():
    with ops.use("*=torch", exact=False):
        yield


def test_every_step_can_be_overridden():
    said = []

    class Loud(TiledLinear):
        def _split_global_input(self, input, split_sizes):
            said.append(("split", split_sizes))
            return super()._split_global_input(input, split_sizes)

        def _reduce_local_output(self, in_id, out_id, current_out, new_out):
            said.append(("reduce", in_id, out_id, current_out is None))
            return super()._reduce_local_output(in_id, out_id, current_out, new_out)

        def _combine_output_splits(self, outputs):
            said.append(("combine", len(outputs)))
            return super()._combine_output_splits(outputs)

    x, loud = drawn(2, 5), Loud(5, 4, in_splits=3, out_splits=2, dtype=F64)
    assert_twins([loud(x)], [loud.to_linear()(x)])
    reduced = [("reduce", i, o, i == 0) for o in range(2) for i in range(3)]
    assert said == [("split", [2, 2, 1]), *reduced, ("combine", 2)]


class Pair(nn.Linear):
    """As Megatron-LM's: the bias is returned and not added."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight), self.bias


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("splits", [(1, 1), (3, 1), (1, 2), (3, 2)], ids=str)
def test_tiles_may_return_their_bias(splits, bias):
    twin, x = plain(7, 5, bias=bias), drawn(2, 3, 7)
    tiled = TiledLinearReturnBias.from_linear(twin, *splits, linear_cls=Pair)
    product, returned = tiled(x)
    assert_twins([product], [x @ twin.weight.t()])
    assert (returned is None) == (not bias)
    assert returned is None or torch.equal(returned, twin.bias)
    tiled.combine_out_splits = False
    pairs = tiled(x)
    assert isinstance(pairs, list)
    assert_twins([torch.cat([p for p, _ in pairs], -1)], [product])


def test_a_tile_that_returns_no_pair_and_rows_that_disagree_are_refused():
    with pytest.raises(OpArgumentError, match=r"tile \[0\]\[0\] returned Tensor"):
        TiledLinearReturnBias(4, 2)(torch.ones(1, 4))
    tiled = TiledLinearReturnBias(4, 2, out_splits=2, linear_cls=Pair)
    tiled.linears[1][0].bias = None
    with pytest.raises(OpArgumentError, match="found 1 of 2"):
        tiled(torch.ones(1, 4))


@pytest.mark.parametrize("in_splits", [1, 2])
def test_an_input_of_another_width_is_refused_by_the_layer_s_own(in_splits):
    tiled = TiledLinear(8, 6, in_splits=in_splits, out_splits=2)
    for x in (torch.ones(2, 7), torch.tensor(1.0)):
        with pytest.raises(OpArgumentError, match=r"TiledLinear: the input must be \[..., 8\]"):
            tiled(x)
