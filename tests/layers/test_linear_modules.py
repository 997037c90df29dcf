"""Linear and its ZeRO-3 form as modules: torch's in names, start and state."""

import pytest
import torch
from linear_twins import F64, assert_within_budget, drawn, of_module, plain
from torch import nn

from accel import ops, testing
from accel.errors import OpArgumentError
from accel.layers.linear import Linear
from accel.layers.tiled_linear import TiledLinear
from accel.layers.zero3 import LinearModuleForZeroStage3, print_rank_0
from accel.ops import catalog

HOST, F32, HALVES = testing.HOST, torch.float32, [torch.bfloat16, torch.float16]
LAYERS = [Linear, LinearModuleForZeroStage3]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)


@pytest.fixture(autouse=True)
def torch_serves():
    with ops.use("*=torch", exact=False):
        yield


@each_layer
def test_a_layer_starts_saves_and_shows_itself_as_torch_s(layer):
    for bias in (True, False):
        torch.manual_seed(0)
        twin = nn.Linear(7, 5, bias=bias, dtype=F64)
        torch.manual_seed(0)
        mine = layer(7, 5, bias, None, F64)
        saved, wanted = mine.state_dict(), twin.state_dict()
        assert list(saved) == list(wanted)
        assert all(torch.equal(saved[name], wanted[name]) for name in wanted)
        assert mine.extra_repr() == twin.extra_repr()
        twin.load_state_dict(saved)


@each_layer
def test_parameters_are_shared_with_a_plain_layer_both_ways(layer):
    twin = nn.Linear(7, 5).eval()
    twin.weight.requires_grad_(False)
    mine = layer.from_linear(twin)
    back = mine.to_linear()
    assert type(back) is nn.Linear
    for other in (mine, back):
        assert other.weight is twin.weight
        assert other.bias is twin.bias
        assert not other.training
    assert layer.from_linear(nn.Linear(3, 2, bias=False)).bias is None


def test_an_activation_belongs_to_the_layer_and_to_no_plain_one():
    x = drawn(2, 3, 8, dtype=F32)
    mine = Linear(8, 5, act="silu")
    assert torch.equal(mine(x), ops.linear(x, mine.weight, mine.bias, act="silu"))
    assert mine.extra_repr().endswith("act='silu'")
    assert Linear.from_linear(mine).act == "silu"
    with pytest.raises(OpArgumentError, match=r"nn\.Linear has no act"):
        mine.to_linear()
    with pytest.raises(OpArgumentError, match=r"unknown act 'sillu'.*silu"):
        Linear(8, 5, act="sillu")
    with pytest.raises(OpArgumentError, match="partial sum"):
        mine(x, mine(x))
    with pytest.raises(OpArgumentError, match=r"has no activation; found act='silu'"):
        LinearModuleForZeroStage3.from_linear(mine)


def test_a_parametrized_layer_is_refused():
    twin = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    with pytest.raises(OpArgumentError, match="remove_parametrizations"):
        Linear.from_linear(twin)


@pytest.mark.parametrize("layer", [Linear, LinearModuleForZeroStage3, TiledLinear])
def test_only_a_linear_layer_is_one_to_be_made_from(layer):
    with pytest.raises(TypeError, match=rf"{layer.__name__}: from_linear takes .*, not Bilinear"):
        layer.from_linear(nn.Bilinear(2, 2, 2))


def test_a_layer_explains_what_serves_it():
    decision = LinearModuleForZeroStage3(8, 5).explain()["linear"]
    assert decision.chosen.impl.id == "torch"


@each_layer
@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.ones(2, 7), "last dimension"),
        (torch.ones(2, 8, dtype=torch.int32), "must be one of"),
        (torch.ones(2, 8, dtype=F64), "dtype"),
        (torch.ones(()), "at least one dimension"),
        (torch.ones(2, 8, device="meta"), "device"),
    ],
)
def test_a_bad_input_is_refused(layer, x, says):
    with pytest.raises(OpArgumentError, match=says):
        layer(8, 5)(x)


def test_a_message_is_printed_if_asked_by_the_first_process(capsys, monkeypatch):
    print_rank_0("nothing")
    print_rank_0("debug", debug=True)
    print_rank_0("force", force=True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    print_rank_0("second", force=True)
    assert capsys.readouterr().out == "debug\nforce\n"


def implementations(dtype):
    """Those of linear that serve the host."""
    for entry in catalog.entries("linear"):
        if entry.builder.device_type in (HOST, "*"):
            with ops.use(f"linear={entry.impl.id}", exact=False):
                if ops.explain("linear", device=HOST, dtype=dtype).chosen:
                    yield entry.impl.id


@pytest.mark.parametrize("dtype", [F32, *HALVES], ids=str)
def test_with_every_implementation_here_the_layer_is_within_the_budget(dtype):
    twin = plain(33, 17)
    y, dx, grads = of_module(twin, drawn(3, 33))
    served = list(implementations(dtype))
    assert len(served) > 1
    for impl in served:
        mine = LinearModuleForZeroStage3.from_linear(plain(33, 17, dtype=dtype))
        with ops.use(f"linear={impl}", exact=False):
            found = of_module(mine, drawn(3, 33, dtype=dtype))
        wanted = (y, dx, *grads.values())
        assert_within_budget((*found[:2], *found[2].values()), wanted, dtype)
