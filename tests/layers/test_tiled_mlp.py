"""TiledMLP: its plain twin in float64, and one gradient per weight."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mlp_twin import ACTS, F32, Plain, assert_equal, gradients, made, tiled
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("torch_serves")


@given(
    batch=st.lists(st.integers(0, 3), max_size=2),
    tokens=st.integers(0, 9),
    tile_rows=st.integers(1, 20),
    gated=st.booleans(),
    bias=st.booleans(),
    act=st.sampled_from(sorted(ACTS)),
)
@settings(deadline=None, max_examples=60)
def test_values_and_gradients_are_those_of_the_plain_twin(
    batch, tokens, tile_rows, gated, bias, act
):
    torch.manual_seed(0)
    plain = Plain(act=act, gated=gated, bias=bias)
    layer = tiled(plain, act=act, tile_rows=tile_rows)
    x = made(*batch, tokens, 5)
    assert_equal(gradients(layer, x), gradients(plain, x))


def test_a_single_row_needs_no_leading_dimension():
    plain = Plain()
    assert_equal(gradients(tiled(plain), made(5)), gradients(plain, made(5)))


@pytest.mark.parametrize("dtype", [F32, torch.bfloat16, torch.float16], ids=str)
def test_the_size_of_tiles_changes_no_result_beyond_the_budget(dtype, within_budget):
    torch.manual_seed(0)
    plain, x = Plain(16, 48, bias=True, dtype=dtype), made(2, 23, 16, dtype=dtype)
    want, wanted = gradients(copy.deepcopy(plain).double(), x.double())
    for tile_rows in (1, 7, 46, 1000):
        got, found = gradients(tiled(plain, tile_rows=tile_rows), x)
        within_budget("tiled_mlp", got, want)
        for name, grad in found.items():
            assert grad.dtype is dtype
            within_budget("tiled_mlp", grad, wanted[name], gradients=True)


def test_second_derivatives_are_those_of_the_plain_twin():
    def second(module):
        x = made(4, 5).requires_grad_()
        leaves = [x, *module.parameters()]
        first = torch.autograd.grad(module(x).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    plain = Plain(bias=True)
    assert_equal(second(tiled(plain)), second(plain))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(reentrant):
    layer, x = tiled(Plain()), made(2, 4, 5)
    again = copy.deepcopy(layer)
    again.forward = lambda x: checkpoint(layer.forward, x, use_reentrant=reentrant)
    y = again(x.requires_grad_())
    y.backward(made(*y.shape))
    _, wanted = gradients(layer, x.detach())
    for name, parameter in layer.named_parameters():
        assert torch.equal(parameter.grad, wanted[name])


def test_it_compiles_whole():
    torch.compiler.reset()
    layer, x = tiled(Plain(bias=True)), made(2, 4, 5)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y = compiled(x.requires_grad_())
    y.backward(made(*y.shape))
    want, wanted = gradients(layer, x.detach())
    assert_equal(y.detach(), want)
    for name, parameter in layer.named_parameters():
        assert_equal(parameter.grad, wanted[name])
    torch.compiler.reset()


def test_a_graph_serves_every_number_of_rows_that_makes_as_many_tiles():
    torch.compiler.reset()
    plain = Plain()
    layer, counter = tiled(plain, tile_rows=8), CompileCounterWithBackend("aot_eager")
    layer.compile(backend=counter, fullgraph=True, dynamic=True)
    graphs = []
    for rows in (3, 4, 6, 10, 11, 13):  # of no other dimension's size, nor whole tiles
        assert_equal(gradients(layer, made(rows, 5)), gradients(plain, made(rows, 5)))
        graphs.append(counter.frame_count)
    assert graphs == [1, 1, 1, 2, 2, 2]
    torch.compiler.reset()


def test_functorch_sees_one_function_of_parameters():
    plain = Plain(bias=True)
    layer, x = tiled(plain), made(3, 4, 5)
    parameters = dict(layer.named_parameters())

    def loss(parameters, row):
        return torch.func.functional_call(layer, parameters, (row,)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, row in enumerate(x):
        plain.zero_grad()
        plain(row).square().sum().backward()
        for name, parameter in plain.named_parameters():
            assert_equal(found[name][i], parameter.grad)


# -- one gradient per weight -------------------------------------------------------------------


def test_a_hook_on_a_parameter_fires_once_with_the_whole_gradient():
    layer, x = tiled(Plain(bias=True), tile_rows=2), made(3, 5, 5)
    _, wanted = gradients(layer, x)
    fired = []
    for name, parameter in layer.named_parameters():
        parameter.register_hook(lambda grad, name=name: fired.append((name, grad)))
    y = layer(x)
    y.backward(made(*y.shape))
    assert sorted(name for name, _ in fired) == sorted(name for name, _ in layer.named_parameters())
    for name, grad in fired:
        assert torch.equal(grad, wanted[name])


def test_a_frozen_weight_gets_none_and_the_others_the_same():
    layer, x = tiled(Plain(bias=True)), made(7, 5)
    _, wanted = gradients(layer, x)
    layer.up_proj.weight.requires_grad_(False)
    y = layer(x)
    y.backward(made(*y.shape))
    assert layer.up_proj.weight.grad is None
    for name, parameter in layer.named_parameters():
        assert name == "up_proj.weight" or torch.equal(parameter.grad, wanted[name])
