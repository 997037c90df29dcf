"""Transformer layers: what dropout draws, what padding changes, compilation, exactness."""

import pytest
import torch
from agreement import assert_agree
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint
from transformer_twin import F64, FLAGS, config, drawn, made

from accel import ops, testing
from accel.errors import VarianceWarning
from accel.layers.transformer import TransformerFunction, TransformerLayer

pytestmark = pytest.mark.usefixtures("torch_serves")

DROPS = {"attn_dropout_ratio": 0.3, "hidden_dropout_ratio": 0.2}


# -- dropout's numbers -------------------------------------------------------------------------


def test_the_default_generator_repeats_what_is_dropped():
    layer, x = made(config(**DROPS)), drawn(2, 5, 8)
    torch.manual_seed(1)
    one, two = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), one)
    assert not torch.equal(one, two)


def test_a_generator_of_its_own_leaves_the_default_one_alone():
    layer, x = made(config(**DROPS)), drawn(2, 5, 8)
    state = torch.get_rng_state()
    layer.generator = torch.Generator().manual_seed(4)
    one, two = layer(x), layer(x)
    layer.generator.manual_seed(4)
    assert torch.equal(layer(x), one)
    assert not torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_in_the_config_gives_each_layer_its_own():
    def layers(seed):
        return [TransformerLayer(config(**DROPS, seed=seed), layer_id=i, dtype=F64) for i in (0, 1)]

    weights = layers(3)[0].state_dict()
    x = drawn(2, 5, 8)
    found = {}
    for seed in (3, 3, 4):
        made_of = layers(seed)
        for layer in made_of:
            layer.load_state_dict(weights)
        found.setdefault(seed, []).append([layer(x) for layer in made_of])
    (one, other), (again, _) = found[3]
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, found[4][0][0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_generator_that_cannot_be_restored_is_not_checkpointed_in_silence(reentrant):
    layer, x = made(config(**DROPS, seed=3)), drawn(2, 5, 8).requires_grad_()
    y = checkpoint(layer, x, use_reentrant=reentrant).sum()
    with pytest.raises(RuntimeError, match="with a generator of its own"):
        y.backward()


@pytest.mark.parametrize("settings", [{}, DROPS], ids=["no_rate", "eval"])
def test_no_number_is_drawn_where_nothing_is_dropped(settings):
    layer = made(config(**settings)).train(not settings)
    state = torch.get_rng_state()
    layer(drawn(2, 5, 8))
    assert torch.equal(torch.get_rng_state(), state)


# -- padding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bool", "minus_inf", "minus_10000"])
@pytest.mark.parametrize("length", [3, 17, 40])
@pytest.mark.parametrize("pre_layer_norm", [True, False])
def test_padding_is_invisible(pre_layer_norm, length, kind):
    """The same elements are dropped, results of real rows are the same to float64's rounding, the
    generator is left in the same state; what stands in the padding does not matter at all."""
    layer = made(config(**DROPS, pre_layer_norm=pre_layer_norm))
    x = drawn(2, 3, 8)
    padded = torch.cat([x, 50 * drawn(2, length - 3, 8)], 1)
    seen = (torch.arange(length) < 3).expand(2, 1, 1, length)
    hidden = {"minus_inf": float("-inf"), "minus_10000": -10000.0}.get(kind)
    mask = torch.zeros(seen.shape).masked_fill(~seen, hidden) if hidden else seen
    torch.manual_seed(1)
    want, state = layer(x), torch.get_rng_state()
    torch.manual_seed(1)
    got = layer(padded, mask)
    assert torch.equal(torch.get_rng_state(), state)
    assert_agree(got[:, :3], want)
    other = padded.clone()
    other[:, 3:] = drawn(2, length - 3, 8) - 7
    torch.manual_seed(1)
    assert torch.equal(layer(other, mask)[:, :3], got[:, :3])


# -- compilation -------------------------------------------------------------------------------


@pytest.fixture
def _compile_afresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_compile_afresh")
@pytest.mark.parametrize("flags", [("stochastic_mode",), FLAGS], ids="+".join)
def test_it_compiles_whole_with_its_gradients(flags):
    masked = flags == FLAGS
    layer = made(config(**DROPS, pre_layer_norm=masked, **dict.fromkeys(flags, True)))
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=graphs, fullgraph=True)
    for batch, length in ((2, 5), (3, 9)):
        x = drawn(batch, length, 8).requires_grad_()
        mask = drawn(batch, 1, 1, length) if masked else None
        for t, dims in ((x, (0, 1)), (mask, (0, 3))):
            if t is not None:
                torch._dynamo.mark_dynamic(t, dims)
        torch.manual_seed(1)
        want = torch.autograd.grad(layer(x, mask).square().sum(), [x, *layer.parameters()])
        torch.manual_seed(1)
        found = torch.autograd.grad(compiled(x, mask).square().sum(), [x, *layer.parameters()])
        torch.testing.assert_close(found, want)
    assert graphs.frame_count == 1


@pytest.mark.usefixtures("_compile_afresh")
def test_one_graph_serves_every_length_and_names_the_implementations():
    seen = []

    def backend(module, inputs):
        seen.append({str(node.target) for node in module.graph.nodes})
        return module.forward

    layer = made(config(gelu_checkpoint=False)).eval()
    with torch.no_grad():
        compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
        for batch, length in ((2, 5), (3, 9)):
            x = drawn(batch, length, 8)
            torch.testing.assert_close(compiled(x), layer(x))
    (graph,) = seen
    assert {f"accel.{op}_torch.default" for op in TransformerLayer.uses if op != "softmax"} <= graph


# -- exactness ---------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [False, True])
def test_stochastic_mode_permits_kernels_whose_rows_vary(function):
    def run(layer):
        args = (drawn(2, 5, 8), None)
        if function:
            weights = layer.parameters()
            return TransformerFunction.apply(*args, layer, None, 0, *weights, layer.config)
        return layer(*args)

    with testing.installed(testing.fake_backend()), ops.use(exact=True):
        run(made(config(stochastic_mode=True)))
        with pytest.raises(VarianceWarning):
            run(made(config()))
