"""Linear layers sharded over two processes: values of the whole, and the bytes that are counted."""

import pytest
import torch
from sharded_linears import KINDS, SIZE, TILES, stack, work
from torch import nn

from accel.layers.tiled_linear import TiledLinear

TILE_COUNT = TILES["in_splits"] * TILES["out_splits"]
WEIGHT = SIZE * SIZE * 4
# Through gloo fully_shard of torch 2.8 adds the processes' gradients, 2.13 averages them.
SUMS = torch.__version__ < "2.13"


@pytest.fixture(scope="module")
def found(in_two_processes):
    """What each rank measured."""
    folder = in_two_processes(work)
    return [torch.load(folder / str(rank), weights_only=False) for rank in (0, 1)]


def figures(found, kind, lowered=False):
    return found[0][kind, lowered][0]


def test_in_full_precision_the_peak_is_at_most_that_of_torch_s(found):
    plain, ours = figures(found, "plain"), figures(found, "zero3")
    assert plain["forward"] > 2 * WEIGHT, "gathered weights are seen, or this test shows nothing"
    for name in ("forward", "step"):
        assert ours[name] <= plain[name] * 1.001  # the C library rounds what it hands out


def test_under_autocast_no_cast_of_a_weight_is_kept(found):
    plain, ours = figures(found, "plain", True), figures(found, "zero3", True)
    casts = 2 * WEIGHT // 2  # of two layers, in half of their bytes
    assert plain["kept"] >= casts
    assert ours["kept"] <= plain["kept"] - casts
    assert ours["kept"] < WEIGHT // 2
    assert ours["forward"] <= plain["forward"] - casts


def test_gathered_bytes_fall_by_the_number_of_tiles(found):
    plain, tiled = (figures(found, kind) for kind in ("plain", "tiled"))
    gathered = plain["forward"] - plain["kept"]
    assert gathered > 2 * WEIGHT
    # A tenth more, for the results of tiles.
    assert (tiled["forward"] - tiled["kept"]) * TILE_COUNT <= gathered * 1.1


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_whole(found, kind, rank):
    _, _, (y, dx, *grads) = found[rank][kind, False]
    _, _, (want, want_dx, *_) = found[rank]["plain", False]
    torch.testing.assert_close((y, dx), (want, want_dx))
    x = torch.linspace(-1, 1, SIZE).expand(2, 2, SIZE).clone().requires_grad_()
    model = stack(kind)
    model(x).square().mean().backward()
    processes = 2 if SUMS else 1
    torch.testing.assert_close(grads, [p.grad * processes for p in model.parameters()])


def test_our_layers_return_no_views_and_torch_s_does(found):
    if torch.__version__ >= "2.13":  # 2.8 has no such warning
        assert found[0]["plain", False][1]
    for kind in ("zero3", "tiled"):
        assert not found[0][kind, False][1]


@pytest.mark.parametrize("rank", [0, 1])
def test_sharded_tiles_are_saved_as_tiles_and_read_loaded_and_copied_as_a_whole(found, rank):
    state = found[rank]["state"]
    plain = stack("plain")[0]
    names = [name for name, _ in TiledLinear(SIZE, SIZE, **TILES).named_parameters()]
    assert state["keys"] == names
    assert torch.equal(state["start"][0], plain.weight)
    assert torch.equal(state["start"][1], plain.bias)
    torch.manual_seed(1)
    assert torch.equal(state["loaded"], nn.Linear(SIZE, SIZE).weight)
    assert torch.equal(state["saved"], plain.weight)
    torch.manual_seed(2)
    assert torch.equal(state["copied"], nn.Linear(SIZE, SIZE).weight)
    assert torch.equal(state["plain"], state["copied"])
