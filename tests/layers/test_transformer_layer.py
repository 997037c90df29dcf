"""TransformerLayer: parameters, arguments, copies."""

import copy
import math
import pickle

import pytest
import torch
from agreement import assert_drawn
from transformer_twin import F64, FLAGS, config, drawn, made

from accel import testing
from accel.errors import ConfigError, OpArgumentError
from accel.layers.transformer import TransformerFunction, TransformerLayer, TransformerLayerConfig

pytestmark = pytest.mark.usefixtures("torch_serves")

DROPS = {"attn_dropout_ratio": 0.3, "hidden_dropout_ratio": 0.2}


# -- parameters --------------------------------------------------------------------------------


def test_the_parameters_have_deepspeed_s_names_and_shapes():
    layer = TransformerLayer(config())
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "attn_qkvw": (24, 8), "attn_qkvb": (24,), "attn_ow": (8, 8), "attn_ob": (8,),
        "attn_nw": (8,), "attn_nb": (8,), "inter_w": (12, 8), "inter_b": (12,),
        "output_w": (8, 12), "output_b": (8,), "norm_w": (8,), "norm_b": (8,),
    }  # fmt: skip


@pytest.mark.parametrize(("adjust", "layers"), [(True, 8), (False, 8), (True, -1)])
@pytest.mark.parametrize("rank", [-1, 0])
def test_weights_are_drawn_alike_on_every_rank(adjust, layers, rank):
    torch.manual_seed(0)
    settings = {"num_hidden_layers": layers, "initializer_range": 0.5, "local_rank": rank}
    layer = TransformerLayer(
        config(hidden_size=128, intermediate_size=64, adjust_init_range=adjust, **settings)
    )
    smaller = 0.5 / math.sqrt(16) if adjust and layers > 0 else 0.5
    stds = {"attn_qkvw": 0.5, "inter_w": 0.5, "attn_ow": smaller, "output_w": smaller}
    for name, parameter in layer.named_parameters():
        if name in stds:
            assert_drawn(parameter, stds[name])
        else:
            assert torch.equal(parameter, torch.full_like(parameter, name in ("attn_nw", "norm_w")))


def test_weights_are_drawn_again_by_deepspeed_s_name_with_a_range_of_its_own():
    layer = TransformerLayer(config(hidden_size=128, num_hidden_layers=8, initializer_range=0.5))
    for adjust, std in ((False, 0.5), (True, 0.5 / 4)):
        layer.init_transformer_weights(adjust)
        assert_drawn(layer.attn_ow, std)


def test_layers_are_numbered_anew_where_a_script_says_so(monkeypatch):
    """As scripts for DeepSpeed do before they make a second model."""
    monkeypatch.setattr(TransformerLayer, "layer_id", 0)
    made = [TransformerLayer(config()) for _ in range(2)]
    given = TransformerLayer(config(), layer_id=7)
    assert [layer.layer_id for layer in (*made, given)] == [0, 1, 7]
    assert TransformerLayer.layer_id == 2


def initial(rank):
    shapes = [(8, 8)] * 4 + [(8,), (12, 8), (8, 12), (8,)]
    return [drawn(*(shape if rank == 2 else shape[:1])) + i for i, shape in enumerate(shapes)]


def test_initial_weights_and_biases_are_honoured_whole():
    weights, biases = initial(2), initial(1)
    layer = TransformerLayer(config(), weights, biases, dtype=F64)
    for kind, given in (("w", weights), ("b", biases)):
        parts = [*getattr(layer, f"attn_qkv{kind}").chunk(3)]
        names = ("attn_o", "attn_n", "inter_", "output_", "norm_")
        parts += [getattr(layer, name + kind) for name in names]
        assert all(torch.equal(part, one) for part, one in zip(parts, given, strict=True))


def test_one_of_the_two_leaves_the_others_new():
    layer = TransformerLayer(config(), initial(2), dtype=F64)
    assert not any(p.any() for name, p in layer.named_parameters() if name.endswith("b"))
    layer = TransformerLayer(config(), None, initial(1), dtype=F64)
    assert torch.equal(layer.norm_w, torch.ones(8, dtype=F64))
    assert torch.equal(layer.attn_qkvb[:8], initial(1)[0])


@pytest.mark.parametrize(
    ("weights", "biases", "says"),
    [
        (initial(2)[:7], None, "initial_weights must be 8 tensors.*found 7"),
        (None, [*initial(1)[:5], torch.ones(8), *initial(1)[6:]], r"inner layer must be \[12\]"),
        ([torch.ones(8, 7), *initial(2)[1:]], None, r"query must be \[8, 8\].*\[8, 7\]"),
    ],
)
def test_bad_initial_tensors_are_refused(weights, biases, says):
    number, state = TransformerLayer(config()).layer_id, torch.get_rng_state()
    with pytest.raises(OpArgumentError, match=says):
        TransformerLayer(config(), weights, biases)
    assert torch.equal(torch.get_rng_state(), state)
    assert TransformerLayer(config()).layer_id == number + 1


def test_dtype_device_and_mode_come_from_the_config_unless_given():
    assert TransformerLayer(config()).norm_w.dtype is torch.float32
    assert TransformerLayer(config(fp16=True)).norm_w.dtype is torch.float16
    assert TransformerLayer(config(fp16=True), dtype=torch.bfloat16).norm_w.dtype is torch.bfloat16
    assert TransformerLayer(config(local_rank=0)).norm_w.device.type == testing.HOST
    assert TransformerLayer(config(local_rank=0), device="meta").norm_w.is_meta
    assert not TransformerLayer(config(training=False)).training
    assert TransformerLayer(config()).training


def test_it_runs_on_meta_with_its_gradients():
    layer = TransformerLayer(config(**DROPS), device="meta")
    layer(torch.empty(2, 5, 8, device="meta")).sum().backward()
    assert all(p.grad.shape == p.shape for p in layer.parameters())


def test_settings_come_as_a_config():
    with pytest.raises(TypeError, match="must be a TransformerLayerConfig, not dict"):
        TransformerLayer({"hidden_size": 8, "heads": 2})


def test_a_layer_needs_its_sizes():
    with pytest.raises(ConfigError, match="hidden_size"):
        TransformerLayer(TransformerLayerConfig(heads=2))
    with pytest.raises(ConfigError, match="heads"):
        TransformerLayer(TransformerLayerConfig(hidden_size=8))


def test_layers_share_a_config_and_say_nothing(capfd):
    shared = config(**DROPS)
    before = shared.to_dict()
    layers = [TransformerLayer(shared) for _ in range(3)]
    x = drawn(2, 5, 8, dtype=torch.float32)
    for layer in layers:
        x = layer(x)
    layers[1].eval()(x)
    x.sum().backward()
    assert shared.to_dict() == before
    assert len({layer.layer_id for layer in layers}) == 3
    assert capfd.readouterr() == ("", "")


def test_copies_and_pickles_compute_the_same():
    layer = made(config(**DROPS, seed=5))
    x = drawn(2, 5, 8)
    others = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    want = layer(x)
    for other in others:
        assert torch.equal(other(x), want)
        assert other.config == layer.config


def test_explain_tells_of_every_op():
    decisions = TransformerLayer(config()).explain()
    assert set(decisions) == {*TransformerLayer.uses, *TransformerLayer.variants}


# -- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument",
    ["head_mask", "layer_head_mask", "encoder_hidden_states", "encoder_attention_mask",
     "past_key_value", "past_key_values", "attn_mask"],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_name(argument):
    layer = made(config())
    x = drawn(2, 5, 8)
    with pytest.raises(OpArgumentError, match=f"{argument} cannot be served"):
        layer(x, **{argument: torch.ones(2)})
    assert torch.equal(layer(x, **{argument: None}), layer(x))


def test_probabilities_are_not_returned():
    layer = made(config())
    with pytest.raises(OpArgumentError, match="output_attentions cannot be served"):
        layer(drawn(2, 5, 8), output_attentions=True)
    assert layer(drawn(2, 5, 8), output_attentions=False).shape == (2, 5, 8)


def ones(*shape, **kind):
    return torch.ones(*shape, **kind)


@pytest.mark.parametrize(
    ("x", "mask", "says"),
    [
        (ones(5, 8), None, r"hidden_states must be \[B, S, 8\]; found float32\[5, 8\]"),
        (ones(2, 5, 7), None, r"hidden_states must be \[B, S, 8\]"),
        (ones(2, 5, 8, dtype=F64), None, "parameters' dtype and device; found float64"),
        (ones(2, 5, 8, device="meta"), None, "parameters' dtype and device; .*on meta"),
        (ones(2, 5, 8), ones(2, 5), r"mask must be \[B or 1, heads or 1.*found float32\[2, 5\]"),
        (ones(2, 5, 8), ones(2, 1, 1, 4), "mask must be.*S = 5; found"),
        (ones(2, 5, 8), ones(2, 3, 1, 5), "heads = 2"),
        (ones(2, 5, 8), ones(3, 1, 1, 5), "B = 2"),
        (ones(2, 5, 8), ones(2, 1, 1, 5, dtype=torch.int64), "floating point.*or bool"),
        (ones(2, 5, 8), ones(2, 1, 1, 5, device="meta"), "attention_mask must be on"),
    ],
)
def test_bad_input_is_refused_and_draws_no_number(x, mask, says):
    layer = made(config(**DROPS), torch.float32)
    state = torch.get_rng_state()
    for call in (
        lambda: layer(x, mask),
        lambda: TransformerFunction.apply(x, mask, layer, [], 0, *layer.parameters(), layer.config),
    ):
        with pytest.raises(OpArgumentError, match=says):
            call()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [None, 3, "x"])
def test_what_is_no_tensor_is_a_type_error(bad):
    layer = made(config())
    with pytest.raises(TypeError, match="hidden_states must be a "):
        layer(bad)
    if bad is not None:
        with pytest.raises(TypeError, match="attention_mask must be a "):
            layer(drawn(2, 5, 8), bad)


def test_a_query_that_sees_nothing_attends_to_nothing():
    layer = made(config())
    x = drawn(1, 5, 8).requires_grad_()
    y = layer(x, torch.zeros(1, 1, 1, 5, dtype=torch.bool))
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8), (1, 1, 8)], ids=str)
@pytest.mark.parametrize("flags", [(), FLAGS], ids=["plain", "flagged"])
def test_any_number_of_rows_is_served(shape, flags):
    layer = made(config(**DROPS, **dict.fromkeys(flags, True)))
    x = drawn(*shape).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape


TAGS = ["V_W", "V_B", "O_W", "O_B", "N2_W", "N2_B", "int_W", "int_B", "out_W", "out_B", "norm_W",
        "norm_B"]  # fmt: skip


@pytest.mark.parametrize("function", [False, True])
def test_grads_collects_each_gradient_once_with_its_tag(function):
    layer, x = made(config()), drawn(2, 5, 8)
    grads = []
    if function:
        args = (x, None, layer, grads, 0, *layer.parameters(), layer.config)
        TransformerFunction.apply(*args).sum().backward()
    else:
        layer(x, grads=grads).sum().backward()
    layer(x).sum().backward()  # is not listened to
    assert sorted(tag for _, tag in grads) == sorted(TAGS)
    found = {tag: grad for grad, tag in grads}
    for tag, parameter in zip(TAGS, layer.parameters()):
        torch.testing.assert_close(2 * found[tag], parameter.grad)
