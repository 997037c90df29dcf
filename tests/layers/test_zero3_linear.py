"""The ZeRO-3 linear: torch's linear in all it computes, and nothing kept of the weight."""

import itertools
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_twins import F64, assert_twins, assert_within_budget, drawn, of_module, results
from torch import nn
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

from accel import ops, testing
from accel.layers.linear import Linear
from accel.layers.zero3 import (
    LinearFunctionForZeroStage3,
    LinearModuleForZeroStage3,
    autocast_custom_bwd,
    autocast_custom_fwd,
    zero3_linear_wrap,
)

HOST, F32, BF16, F16 = testing.HOST, torch.float32, torch.bfloat16, torch.float16
HALVES = [BF16, F16]


@pytest.fixture(autouse=True)
def torch_serves():
    """Rows may vary with shape: float64 and eager torch have no kernel in which they do not."""
    with ops.use("*=torch", exact=False):
        yield


# -- values ------------------------------------------------------------------------------------

LAYERS = [Linear, LinearModuleForZeroStage3]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
rows = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@each_layer
@given(rows=rows, sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), bias=st.booleans(),
       needs=st.tuples(st.booleans(), st.booleans(), st.booleans()))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_layer_is_torch_s_whatever_the_rows_and_whatever_is_frozen(
    layer, rows, sizes, bias, needs
):
    twin = nn.Linear(*sizes, bias=bias, dtype=F64)
    twin.weight.requires_grad_(needs[1])
    if bias:
        twin.bias.requires_grad_(needs[2])
    mine = layer.from_linear(twin)
    x = drawn(*rows, sizes[0]).requires_grad_(needs[0])
    leaves = [leaf for leaf in (x, *twin.parameters()) if leaf.requires_grad]
    y, want = mine(x), twin(x)
    assert_twins([y], [want])
    assert y.requires_grad == bool(leaves)
    if leaves:
        out = drawn(*y.shape, seed=1)
        assert_twins(torch.autograd.grad(y, leaves, out), torch.autograd.grad(want, leaves, out))


@pytest.mark.parametrize("dtype", [F32, *HALVES], ids=str)
@pytest.mark.parametrize("shape", [(33,), (5, 33), (2, 3, 33)], ids=str)
def test_every_dtype_is_within_the_budget_of_float64(shape, dtype):
    tensors = [drawn(*s, seed=i) for i, s in enumerate((shape, (17, 33), (17,)))]
    found = results(zero3_linear_wrap, *(t.to(dtype).requires_grad_() for t in tensors))
    wide = [t.requires_grad_() for t in tensors]
    assert {t.dtype for t in found} == {dtype}
    assert_within_budget(found, results(F.linear, *wide), dtype)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 3)], ids=str)
def test_derivatives_of_second_order_are_right(shape):
    leaves = [drawn(*s).requires_grad_() for s in (shape, (4, 3), (4,))]
    assert torch.autograd.gradcheck(zero3_linear_wrap, leaves)
    assert torch.autograd.gradgradcheck(zero3_linear_wrap, leaves)


@pytest.mark.parametrize("bias", [False, True])
def test_the_function_itself_and_its_keyword(bias):
    x, w, b = (drawn(*s).requires_grad_() for s in ((2, 3), (4, 3), (4,)))
    want = results(F.linear, x, w, b) if bias else results(F.linear, x, w)
    args = (x, w, b) if bias else (x, w)
    assert_twins(results(LinearFunctionForZeroStage3.apply, *args), want)
    named = lambda x, w, b=None: zero3_linear_wrap(x, w, bias=b)  # noqa: E731
    assert_twins(results(named, *args), want)


def test_tensors_without_values_have_gradients_too():
    x, w = (torch.ones(*s, device="meta", requires_grad=True) for s in ((2, 3, 4), (5, 4)))
    dx, dw = torch.autograd.grad(zero3_linear_wrap(x, w).sum(), (x, w))
    assert (dx.shape, dw.shape) == (x.shape, w.shape)


def test_only_what_needs_a_gradient_is_computed(monkeypatch):
    asked = []
    whole = LinearFunctionForZeroStage3.backward.__globals__["LINEAR"]
    spy = type("Spy", (), {})()
    spy.backward = lambda out, needs, *args: (
        asked.append(needs) or whole.backward(out, needs, *args)
    )
    monkeypatch.setitem(LinearFunctionForZeroStage3.backward.__globals__, "LINEAR", spy)
    masks = list(itertools.product([False, True], repeat=3))[1:]
    for mask in masks:
        leaves = [drawn(*s).requires_grad_(n) for s, n in zip(((2, 3), (4, 3), (4,)), mask)]
        zero3_linear_wrap(*leaves).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == list(mask)
    assert asked == masks


# -- autocast ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lower", HALVES, ids=str)
@pytest.mark.parametrize("outside", [None, BF16, F16, "off"], ids=str)
def test_autocast_at_forward_is_replayed_and_that_at_backward_does_not_leak_in(lower, outside):
    leaves = [drawn(*s, dtype=F32).requires_grad_() for s in ((2, 3, 33), (17, 33), (17,))]
    lowered = [leaf.detach().to(lower).requires_grad_() for leaf in leaves]
    want = results(zero3_linear_wrap, *lowered)
    with torch.autocast(HOST, dtype=lower):
        y = zero3_linear_wrap(*leaves)
    out = drawn(*y.shape, seed=9, dtype=lower)
    state = {"enabled": outside not in (None, "off")}
    state |= {"dtype": outside} if state["enabled"] else {}
    with torch.autocast(HOST, **state):
        grads = torch.autograd.grad(y, leaves, out)
    assert y.dtype is lower
    assert {g.dtype for g in grads} == {F32}
    assert torch.equal(y, want[0])
    assert all(torch.equal(g, w.to(F32)) for g, w in zip(grads, want[1:]))


def test_a_forward_outside_autocast_is_differentiated_outside():
    leaves = [drawn(*s, dtype=F32).requires_grad_() for s in ((5, 33), (17, 33), (17,))]
    want = torch.autograd.grad(zero3_linear_wrap(*leaves).sum(), leaves)
    loss = zero3_linear_wrap(*leaves).sum()
    with torch.autocast(HOST, dtype=BF16):
        got = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(g, w) for g, w in zip(got, want))


class Recorded(torch.autograd.Function):
    """What autocast says in a forward and a backward under the decorators."""

    seen: ClassVar = []

    @staticmethod
    @autocast_custom_fwd
    def forward(ctx, x):
        Recorded.seen.append((torch.is_autocast_enabled(HOST), torch.get_autocast_dtype(HOST)))
        return x * 2

    @staticmethod
    @autocast_custom_bwd
    def backward(ctx, out):
        Recorded.seen.append((torch.is_autocast_enabled(HOST), torch.get_autocast_dtype(HOST)))
        return out * 2


@pytest.mark.parametrize("forward", [None, BF16, F16], ids=str)
@pytest.mark.parametrize("backward", [None, BF16, F16], ids=str)
def test_the_decorators_replay_the_state_of_the_tensors_device(forward, backward):
    Recorded.seen.clear()
    x = torch.ones(2, requires_grad=True)
    with torch.autocast(HOST, dtype=forward, enabled=forward is not None):
        y = Recorded.apply(x)
    with torch.autocast(HOST, dtype=backward, enabled=backward is not None):
        y.sum().backward()
    at_forward, at_backward = Recorded.seen
    assert at_forward == at_backward
    assert at_forward[0] == (forward is not None)
    assert torch.equal(x.grad, torch.full((2,), 2.0))


def test_the_decorators_take_the_device_from_the_tensors_at_the_call():
    seen = []

    @autocast_custom_fwd(cast_inputs=BF16)
    def forward(ctx, *args):
        seen.extend(args)

    context = type("Context", (), {})()
    forward(context, "text", torch.ones(2, device="meta"))
    assert context._device_type == "meta"
    with torch.autocast(HOST, dtype=BF16):
        forward(context, torch.ones(2))
    assert context._device_type == HOST
    assert [getattr(a, "dtype", a) for a in seen] == ["text", F32, BF16]
    with pytest.raises(TypeError, match="found no tensor"):
        forward(context, 1)


# -- torch.func, compilation, checkpointing ----------------------------------------------------


def test_torch_func_agrees_with_autograd():
    x, w, b = drawn(6, 3, 4), drawn(5, 4), drawn(5)
    loss = lambda x, w, b: zero3_linear_wrap(x, w, b).square().sum()  # noqa: E731
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    want = torch.autograd.grad(F.linear(*leaves).square().sum(), leaves)
    assert_twins(grad(loss, argnums=(0, 1, 2))(x, w, b), want)
    per_sample = vmap(grad(loss, argnums=1), (0, None, None))(x, w, b)
    assert_twins([per_sample.sum(0)], [want[1]])


@pytest.mark.parametrize(
    "in_dims", [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0)], ids=str
)
def test_vmap_over_any_argument_is_a_loop(in_dims):
    args = [drawn(2, *s) if d == 0 else drawn(*s) for s, d in zip(((3, 4), (5, 4), (5,)), in_dims)]
    one = lambda i: (a if d is None else a[i] for a, d in zip(args, in_dims))  # noqa: E731
    want = torch.stack([F.linear(*one(i)) for i in range(2)])
    assert_twins([vmap(zero3_linear_wrap, in_dims)(*args)], [want])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@each_layer
def test_a_layer_compiles_whole(layer, backend):
    if backend == "inductor" and layer is Linear:
        pytest.skip("the op is compiled by its own tests")
    torch.compiler.reset()
    mine = layer.from_linear(nn.Linear(8, 5))
    x = drawn(2, 3, 8, dtype=F32)
    compiled = torch.compile(mine, backend=backend, fullgraph=True)
    y, dx, grads = of_module(mine, x)
    found_y, found_dx, found = of_module(compiled, x)
    torch.testing.assert_close((found_y, found_dx), (y, dx))
    torch.testing.assert_close(list(found.values()), list(grads.values()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_bit(reentrant):
    leaves = [drawn(*s, dtype=F32).requires_grad_() for s in ((3, 8), (5, 8), (5,))]
    block = lambda x, w, b: zero3_linear_wrap(x.tanh(), w, b).tanh()  # noqa: E731
    block(*leaves).sum().backward()
    want = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    checkpoint(block, *leaves, use_reentrant=reentrant).sum().backward()
    assert all(torch.equal(leaf.grad, one) for leaf, one in zip(leaves, want))
