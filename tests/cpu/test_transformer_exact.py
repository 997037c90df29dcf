"""The transformer layer over native kernels: a sequence's bits are its own."""

import pytest
import torch

from accel import ops
from accel.layers.transformer import TransformerLayer, TransformerLayerConfig

H = 48


@pytest.fixture(autouse=True)
def _exact_or_refused():
    with torch.no_grad(), ops.use(strict=True):
        yield


def made(dtype, **settings):
    torch.manual_seed(0)
    config = TransformerLayerConfig(
        hidden_size=H, intermediate_size=100, heads=3, hidden_dropout_ratio=0.2,
        initializer_range=0.2, **settings
    )  # fmt: skip
    return TransformerLayer(config, dtype=dtype), torch.randn(3, 7, H).to(dtype)


def run(layer, x):
    torch.manual_seed(1)
    return layer(x)


each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
each_norm = pytest.mark.parametrize("pre_layer_norm", [True, False])


@each_norm
@each_dtype
def test_padding_at_the_end_changes_no_bit_where_none_looks_ahead(dtype, pre_layer_norm):
    layer, x = made(dtype, causal=True, pre_layer_norm=pre_layer_norm)
    padded = torch.cat([x, torch.full((3, 30, H), 7.0, dtype=dtype)], 1)
    assert torch.equal(run(layer, padded)[:, :7], run(layer, x))


@each_norm
@each_dtype
def test_other_sequences_change_no_bit(dtype, pre_layer_norm):
    layer, x = made(dtype, pre_layer_norm=pre_layer_norm)
    want = run(layer, x)
    assert torch.equal(run(layer, x[:1]), want[:1])
    assert torch.equal(run(layer, torch.cat([x, -x]))[:3], want)


@each_dtype
def test_a_recorded_forward_has_the_bits_of_one_that_is_not(dtype):
    layer, x = made(dtype)
    want = run(layer, x)
    with torch.enable_grad():
        assert torch.equal(run(layer, x), want)


@each_dtype
def test_padding_that_a_mask_hides_changes_no_bit(dtype):
    layer, x = made(dtype, attn_dropout_ratio=0.3)
    padded = torch.cat([x, torch.full((3, 30, H), 7.0, dtype=dtype)], 1)
    mask = torch.zeros(3, 1, 1, 37, dtype=dtype)
    mask[..., 7:] = -torch.inf
    torch.manual_seed(1)
    assert torch.equal(layer(padded, mask)[:, :7], run(layer, x))


@each_norm
@pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "relu", "silu"])
def test_the_op_has_the_bits_of_its_pieces(act, pre_layer_norm):
    """In fp32, where an activation that the product takes along is rounded no less."""
    layer, x = made(torch.float32, act=act, attn_dropout_ratio=0.3, pre_layer_norm=pre_layer_norm)
    torch.manual_seed(1)
    options = layer.config.op_options(layer.training)
    y = ops.transformer_layer(
        x, *layer.parameters(), seed=layer.seeds(options, x.device), **options
    )
    assert torch.equal(y, run(layer, x))


def test_the_native_attention_serves_every_layer():
    layer, _ = made(torch.float32)
    served = {asked: found.chosen.impl.id for asked, found in layer.explain().items()}
    asked = ("attention", "attention with a mask", "attention with dropout")
    assert {served[name] for name in asked} == {"accel_cpu.native"}
