"""Parameters in tiles: as a plain layer's they start, and are saved, loaded, read and copied."""

import copy
import pickle

import pytest
import torch
from torch import nn

from accel.errors import OpArgumentError
from accel.layers.linear import Linear
from accel.layers.tiled_linear import TiledLinear
from accel.layers.zero3 import LinearModuleForZeroStage3

SPLITS = {"in_splits": 3, "out_splits": 2}


def same(tiled, plain):
    return torch.equal(tiled.weight, plain.weight) and (
        (tiled.bias is None and plain.bias is None) or torch.equal(tiled.bias, plain.bias)
    )


class Zeros(nn.Linear):
    def reset_parameters(self):
        nn.init.zeros_(self.weight)


@pytest.mark.parametrize("tile", [Linear, nn.Linear, LinearModuleForZeroStage3])
@pytest.mark.parametrize("bias", [False, True])
def test_they_start_as_those_of_a_plain_layer_and_so_do_the_layers_after(tile, bias):
    torch.manual_seed(3)
    tiled, after = TiledLinear(7, 5, bias, linear_cls=tile, **SPLITS), torch.rand(3)
    torch.manual_seed(3)
    plain, want = nn.Linear(7, 5, bias), torch.rand(3)
    assert same(tiled, plain)
    assert torch.equal(after, want)
    torch.manual_seed(3)
    tiled.reset_parameters()
    assert same(tiled, plain)


def test_an_initialisation_of_the_tiles_own_stays():
    assert not TiledLinear(7, 5, linear_cls=Zeros, **SPLITS).weight.any()


def test_options_reach_the_tiles():
    tiled = TiledLinear(7, 5, device="meta", dtype=torch.float64, **SPLITS)
    assert {(p.device.type, p.dtype) for p in tiled.parameters()} == {("meta", torch.float64)}
    assert tiled.weight.shape == (5, 7)


# -- copies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_a_plain_layer_goes_into_tiles_and_out_again(bias):
    plain = nn.Linear(7, 5, bias, dtype=torch.float64).eval()
    plain.weight.requires_grad_(False)
    tiled = TiledLinear.from_linear(plain, 3, 2)
    assert same(tiled, plain)
    back = tiled.to_linear()
    assert same(back, plain)
    for other in (tiled, back):
        assert not other.training
        for name, parameter in other.named_parameters():
            assert parameter.requires_grad == name.endswith("bias")
    plain.weight.zero_()
    assert tiled.weight.any(), "copied"
    assert back.weight.any()


def test_what_is_read_is_a_copy():
    tiled = TiledLinear(7, 5)
    tiled.weight.zero_()
    assert tiled.weight.any()
    assert not tiled.weight.requires_grad


def test_parameters_of_another_dtype_are_converted():
    plain = nn.Linear(7, 5, dtype=torch.float64)
    tiled = TiledLinear(7, 5, init_linear=plain, dtype=torch.bfloat16, **SPLITS)
    assert torch.equal(tiled.weight, plain.weight.bfloat16())


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (nn.Linear(7, 6), r"weight to copy must be \[5, 7\]; found \[6, 7\] in Linear"),
        (nn.Linear(7, 5, bias=False), r"bias to copy must be \[5\]; found None"),
        (nn.Bilinear(2, 2, 5), "weight to copy"),
        (nn.ReLU(), "found None in ReLU"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_copied(other, says):
    tiled = TiledLinear(7, 5, **SPLITS)
    before = tiled.weight
    with pytest.raises(OpArgumentError, match=says):
        tiled.copy_params_from(other)
    assert torch.equal(tiled.weight, before)
    with pytest.raises(OpArgumentError, match=r"bias to copy must be None; found \[5\]"):
        TiledLinear(7, 5, False, init_linear=nn.Linear(7, 5))


# -- state -------------------------------------------------------------------------------------


def wrapped(layer):
    return nn.ModuleDict({"a": nn.Sequential(layer), "b": nn.Linear(2, 2)})


@pytest.mark.parametrize("bias", [False, True])
def test_state_goes_between_a_tiled_and_a_plain_layer_both_ways(bias):
    tiled, plain = TiledLinear(7, 5, bias, **SPLITS), nn.Linear(7, 5, bias)
    assert list(tiled.state_dict()) == list(plain.state_dict())
    assert list(wrapped(tiled).state_dict()) == list(wrapped(plain).state_dict())
    wrapped(plain).load_state_dict(wrapped(tiled).state_dict())
    assert same(tiled, plain)
    other = nn.Linear(7, 5, bias)
    for assign in (False, True):
        wrapped(tiled).load_state_dict(wrapped(other).state_dict(), assign=assign)
        assert same(tiled, other)
        other = nn.Linear(7, 5, bias)


def test_what_is_assigned_does_not_keep_the_whole():
    tiled, plain = TiledLinear(7, 5, **SPLITS), nn.Linear(7, 5)
    tiled.load_state_dict(plain.state_dict(), assign=True)
    assert all(p.untyped_storage().nbytes() == p.numel() * 4 for p in tiled.parameters())
    TiledLinear(7, 5, device="meta", **SPLITS).load_state_dict(plain.state_dict(), assign=True)


def test_state_by_tiles_is_loaded_too():
    tiled, other = TiledLinear(7, 5, **SPLITS), TiledLinear(7, 5, **SPLITS)
    by_tiles = dict(other.named_parameters())
    assert "linears.1.2.bias" in by_tiles
    tiled.load_state_dict(by_tiles)
    assert same(tiled, other)


@pytest.mark.parametrize(
    ("change", "missing", "unexpected"),
    [
        (lambda s: s.pop("a.0.weight"), ["a.0.weight"], []),
        (lambda s: s.clear(), ["a.0.weight", "a.0.bias", "b.weight", "b.bias"], []),
        (lambda s: s.update({"a.0.gain": torch.ones(1)}), [], ["a.0.gain"]),
        (
            lambda s: s.update({"a.0.linears.0.0.weight": s.pop("a.0.weight")[:3, :3]}),
            [f"a.0.linears.{o}.{i}.weight" for o in (0, 1) for i in (0, 1, 2)][1:],
            [],
        ),
    ],
)
def test_what_is_missing_and_what_is_unexpected_is_named_rightly(change, missing, unexpected):
    model = wrapped(TiledLinear(7, 5, **SPLITS))
    state = wrapped(nn.Linear(7, 5)).state_dict()
    change(state)
    keys = model.load_state_dict(state, strict=False)
    assert sorted(keys.missing_keys) == sorted(missing)
    assert keys.unexpected_keys == unexpected
    with pytest.raises(RuntimeError, match="issing key" if missing else "nexpected key"):
        model.load_state_dict(state)


def test_a_weight_of_another_shape_is_refused_by_its_name_alone():
    tiled = TiledLinear(7, 5, **SPLITS)
    with pytest.raises(RuntimeError, match=r"weight: the state has \[6, 7\], .* has \[5, 7\]") as e:
        tiled.load_state_dict({**nn.Linear(7, 5).state_dict(), "weight": torch.ones(6, 7)})
    assert "issing" not in str(e.value)
    with pytest.raises(RuntimeError, match=r"weight: the state has str, .* has \[5, 7\]"):
        tiled.load_state_dict({**nn.Linear(7, 5).state_dict(), "weight": "7x5"})


def test_a_bias_where_there_is_none_is_unexpected():
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"bias"'):
        TiledLinear(7, 5, bias=False, **SPLITS).load_state_dict(nn.Linear(7, 5).state_dict())


def test_parameters_that_are_kept_as_variables_stay_differentiable():
    tiled = TiledLinear(7, 5, **SPLITS)
    whole = tiled.state_dict(keep_vars=True)["weight"]
    whole.sum().backward()
    assert all(row[0].weight.grad.eq(1).all() for row in tiled.linears)


def test_copies_and_pickles_save_and_load_alike():
    tiled, plain = TiledLinear(7, 5, **SPLITS), nn.Linear(7, 5)
    for other in (copy.deepcopy(tiled), pickle.loads(pickle.dumps(tiled))):
        assert list(other.state_dict()) == ["weight", "bias"]
        other.load_state_dict(plain.state_dict())
        assert same(other, plain)
        assert not same(tiled, plain)


def test_a_tile_that_was_replaced_is_saved_by_tiles():
    """As by what wraps layers: its parameters have other names."""
    tiled = TiledLinear(7, 5, **SPLITS)
    tiled.linears[0][1] = nn.Sequential(tiled.linears[0][1])
    keys = list(tiled.state_dict())
    assert "linears.0.1.0.weight" in keys
    assert "weight" not in keys
    assert "bias" in keys


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_the_whole_cannot_be_set_and_the_error_says_what_can(name):
    tiled = TiledLinear(7, 5, **SPLITS)
    for value in (nn.Parameter(torch.zeros(5)), torch.zeros(5), None):
        with pytest.raises(AttributeError, match=rf"copy_params_from.*linears\[out\]\[in\].{name}"):
            setattr(tiled, name, value)
    assert same(tiled, tiled.to_linear())


def test_a_layer_can_be_made_without_drawing_its_parameters():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    tiled = nn.utils.skip_init(TiledLinear, 7, 5, dtype=torch.float64, **SPLITS)
    assert torch.equal(torch.get_rng_state(), before)
    tiled.load_state_dict(plain := nn.Linear(7, 5, dtype=torch.float64).state_dict())
    assert torch.equal(tiled.weight, plain["weight"])


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_parametrized_tile_is_read_as_it_is_used_and_a_copy_into_it_refused():
    tiled, plain = TiledLinear(7, 5, **SPLITS), nn.Linear(7, 5)
    want = tiled.weight
    want[3:, 5:] *= 2
    nn.utils.parametrize.register_parametrization(tiled.linears[1][2], "weight", Doubled())
    assert torch.equal(tiled.weight, want)
    with pytest.raises(AttributeError, match="weight"):
        tiled.copy_params_from(plain)
    assert torch.equal(tiled.weight, want)
