"""The transformer layer beside its twin of plain torch in float64: values and every gradient."""

import pytest
import torch
from agreement import assert_agree
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_twin import ACTS, F64, FLAGS, Twin, config, drawn, drops, made

from accel import ops, testing
from accel.layers.transformer import TransformerFunction

pytestmark = pytest.mark.usefixtures("torch_serves")

SEED = 11


def masks(kind, batch, heads, length):
    """A mask of each form that is taken."""
    seen = torch.rand(batch, 1, 1, length, generator=torch.Generator().manual_seed(length)) < 0.7
    seen[..., 0] = True
    return {
        None: None,
        "keys": drawn(batch, 1, 1, length),
        "pairs": drawn(batch, 1, length, length),
        "shared": drawn(1, 1, length, length),
        "per_head": drawn(batch, heads, length, length),
        "bool": seen,
        "bool_pairs": seen.expand(batch, 1, length, length),
        "hidden": torch.zeros(batch, 1, 1, length).masked_fill(~seen, -10000.0),
    }[kind]


KINDS = [None, "keys", "pairs", "shared", "per_head", "bool", "bool_pairs", "hidden"]


@st.composite
def cases(draw):
    heads = draw(st.sampled_from([1, 2, 4]))
    flags = {flag: draw(st.booleans()) for flag in FLAGS}
    made_of = config(
        hidden_size=heads * draw(st.sampled_from([3, 4, 7])),
        intermediate_size=draw(st.sampled_from([-1, 5, 12])),
        heads=heads,
        attn_dropout_ratio=draw(st.sampled_from([-1, 0.0, 0.3])),
        hidden_dropout_ratio=draw(st.sampled_from([-1, 0.0, 0.2])),
        layer_norm_eps=draw(st.sampled_from([1e-12, 1e-3])),
        pre_layer_norm=draw(st.booleans()),
        act=draw(st.sampled_from(sorted(ACTS))),
        causal=draw(st.booleans()),
        return_tuple=draw(st.booleans()),
        stochastic_mode=draw(st.booleans()),
        **flags,
    )
    batch, length = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 5, 16, 17, 33, 70]))
    training, function = draw(st.booleans()), draw(st.booleans())
    return made_of, batch, length, draw(st.sampled_from(KINDS)), training, function


def called(layer, function, *args):
    """The layer, or the function with the layer's weights."""
    if not function:
        return layer(*args)
    return TransformerFunction.apply(*args, layer, None, 0, *layer.parameters(), layer.config)


def close(got, want):
    assert_agree(got, want)


@given(case=cases())
@settings(max_examples=120, deadline=None)
def test_values_and_gradients_are_those_of_plain_torch(case):
    made_of, batch, length, kind, training, function = case
    layer = made(made_of).train(training)
    twin, mask = Twin(layer), masks(kind, batch, made_of.heads, length)
    x = drawn(batch, length, made_of.hidden_size).requires_grad_()
    grad = drawn(length, batch, made_of.hidden_size).transpose(0, 1)

    torch.manual_seed(SEED)
    got = called(layer, function, x, mask)
    if made_of.return_tuple:
        (got,) = got
    want = twin(x, mask, drops(SEED) if training else None)
    close(got, want)
    found = torch.autograd.grad(got, [x, *layer.parameters()], grad)
    close(found, torch.autograd.grad(want, [x, *twin.of_layer()], grad))


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("pre_layer_norm", [True, False])
@pytest.mark.parametrize("flagged", [False, True])
@pytest.mark.parametrize("loss", [torch.square, torch.positive])
def test_second_derivatives_are_those_of_plain_torch(loss, flagged, pre_layer_norm, function):
    flags = dict.fromkeys(FLAGS, flagged)
    layer = made(
        config(pre_layer_norm=pre_layer_norm, attn_dropout_ratio=0.2, hidden_dropout_ratio=0.3,
               **flags)
    )  # fmt: skip
    twin, mask = Twin(layer), masks("pairs", 2, 2, 5).requires_grad_()
    x = drawn(2, 5, 8).requires_grad_()

    def second(y, weights):
        leaves = [x, mask, *weights]
        first = torch.autograd.grad(loss(y).sum(), leaves, create_graph=True)
        total = sum(g.square().sum() for g in first)
        return torch.autograd.grad(total, leaves, materialize_grads=True)

    torch.manual_seed(SEED)
    got = second(called(layer, function, x, mask), list(layer.parameters()))
    want = second(twin(x, mask, drops(SEED)), list(twin.of_layer()))
    for one, other in zip(got, want, strict=True):
        size = other.abs().max().clamp(min=1)
        close(one / size, other / size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pre_layer_norm", [True, False])
@pytest.mark.parametrize("flagged", [False, True])
def test_other_dtypes_are_within_the_budget(flagged, pre_layer_norm, dtype, within_budget):
    flags = dict.fromkeys(FLAGS, flagged)
    layer = made(config(hidden_size=24, intermediate_size=40, heads=3, attn_dropout_ratio=0.1,
                        hidden_dropout_ratio=0.2, pre_layer_norm=pre_layer_norm, **flags),
                 dtype)  # fmt: skip
    twin = Twin(layer)
    x = drawn(2, 9, 24, dtype=dtype).requires_grad_()
    mask, grad = masks("pairs", 2, 3, 9).to(dtype), drawn(9, 24, 2, dtype=dtype).permute(2, 0, 1)
    wide = x.detach().double().requires_grad_()

    torch.manual_seed(SEED)
    got = layer(x, mask)
    want = twin(wide, mask.double(), drops(SEED))
    assert got.dtype is dtype
    within_budget("transformer_layer", got, want)
    found = torch.autograd.grad(got, [x, *layer.parameters()], grad)
    wanted = torch.autograd.grad(want, [wide, *twin.of_layer()], grad.double())
    within_budget("transformer_layer", found, wanted, gradients=True)


def test_the_op_is_the_layer():
    layer = made(config(causal=True, act="relu"))
    x = drawn(2, 5, 8)
    options = layer.config.op_options(training=True)
    close(ops.transformer_layer(x, *layer.parameters(), **options), layer(x))


def test_half_is_what_autocast_gives_with_an_fp32_stream(within_budget):
    layer = made(config(hidden_size=24, heads=3), torch.float32)
    x = drawn(2, 9, 24, dtype=torch.float32).requires_grad_()
    with torch.autocast(testing.HOST, dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype is torch.float32
    want = Twin(layer)(x.double())
    within_budget("transformer_layer", y, want, dtype=torch.bfloat16)
    grads = torch.autograd.grad(y.sum(), list(layer.parameters()))
    assert {g.dtype for g in grads} == {torch.float32}
    assert F64 not in {p.dtype for p in layer.parameters()}
