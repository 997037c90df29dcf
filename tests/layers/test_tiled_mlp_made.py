"""TiledMLP made: of another module's weights, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from mlp_twin import F64, Plain, assert_equal, gradients, made, tiled
from torch import nn

from accel.errors import OpArgumentError
from accel.layers.tiled_mlp import TiledMLP

pytestmark = pytest.mark.usefixtures("torch_serves")


def test_state_dicts_are_those_of_the_plain_mlp():
    plain = Plain(bias=True)
    assert list(tiled(plain).state_dict()) == list(plain.state_dict())
    assert list(TiledMLP(5, 7, gated=False).state_dict()) == ["up_proj.weight", "down_proj.weight"]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_from_mlp_shares_the_parameters(gated, bias):
    plain = Plain(gated=gated, bias=bias).eval()
    layer = TiledMLP.from_mlp(plain, tile_rows=2)
    assert not layer.training
    assert dict(layer.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    for name, parameter in plain.named_parameters():
        assert layer.get_parameter(name) is parameter
    assert_equal(gradients(layer, made(7, 5)), gradients(plain, made(7, 5)))


ACTIVATIONS = [
    (nn.SiLU(), "silu"), (nn.ReLU(), "relu"), (nn.GELU(), "gelu"),
    (nn.GELU(approximate="tanh"), "gelu_tanh"), (F.silu, "silu"), (F.gelu, "gelu"),
]  # fmt: skip


@pytest.mark.parametrize(("held", "name"), ACTIVATIONS)
def test_torch_s_activations_are_known(held, name):
    plain = Plain()
    plain.act_fn = held
    layer = TiledMLP.from_mlp(plain)
    assert layer.act == name
    assert_equal(layer(made(3, 5)), plain(made(3, 5)))


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_the_mlp_of_a_model_of_transformers_is_taken_over(name):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(
        hidden_size=6, intermediate_size=7, hidden_act=name, mlp_bias=True, num_attention_heads=1
    )
    mlp = llama.LlamaMLP(config).double()
    layer = TiledMLP.from_mlp(mlp, tile_rows=2)
    assert_equal(gradients(layer, made(2, 3, 6)), gradients(mlp, made(2, 3, 6)))


def changed(**changes):
    plain = Plain()
    for name, value in changes.items():
        setattr(plain, name, value)
    return plain


OTHERS = {
    "no projections": (nn.Linear(5, 5), "up_proj must be a torch.nn.Linear.*found NoneType"),
    "another class": (changed(up_proj=nn.Bilinear(5, 5, 7)), "up_proj must be .*found Bilinear"),
    "another child": (changed(dropout=nn.Dropout(0.1)), "found dropout as well"),
    "an unknown activation": (changed(act_fn=nn.Mish()), "activation of Plain.*found Mish"),
    "an unknown function": (changed(act_fn=torch.tanh), "found tanh"),
    "no activation": (changed(act_fn=None), "found none"),
}


@pytest.mark.parametrize(("module", "says"), OTHERS.values(), ids=OTHERS)
def test_a_module_that_is_something_else_is_refused(module, says):
    with pytest.raises(OpArgumentError, match=says):
        TiledMLP.from_mlp(module)


def test_a_child_that_would_do_more_than_its_weight_says_is_refused_when_it_runs():
    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    layer = tiled(Plain())
    layer.up_proj.register_forward_hook(lambda *_: None)
    with pytest.raises(OpArgumentError, match="up_proj has hooks, which would not run"):
        layer(made(3, 5))
    layer = tiled(Plain())
    layer.gate_proj = Adapted(5, 7, dtype=F64)
    with pytest.raises(OpArgumentError, match=r"gate_proj must be .*found Adapted"):
        layer(made(3, 5))


BAD = {
    "tile_rows": ({"tile_rows": 0}, "tile_rows must be at least 1; found 0"),
    "hidden_size": ({"hidden_size": 0}, "hidden_size must be at least 1"),
    "intermediate_size": ({"intermediate_size": -1}, "intermediate_size must be at least 1"),
    "act": ({"act": "swosh"}, "unknown act 'swosh'"),
    "no act": ({"act": None}, "unknown act None"),
}


@pytest.mark.parametrize(("options", "says"), BAD.values(), ids=BAD)
def test_bad_options_are_refused(options, says):
    with pytest.raises(OpArgumentError, match=says):
        TiledMLP(**({"hidden_size": 5, "intermediate_size": 7} | options))


def test_tiles_are_of_a_whole_number_of_rows():
    with pytest.raises(TypeError, match="tile_rows must be an int, not float"):
        TiledMLP(5, 7, tile_rows=2.5)


def test_it_says_what_serves_it_and_what_it_is():
    layer = TiledMLP(5, 7, tile_rows=9)
    assert layer.explain()["tiled_mlp"].chosen.impl.id == "torch"
    assert "act='silu', tile_rows=9" in repr(layer)
