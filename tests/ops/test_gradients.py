"""Gradients of ops: right by finite differences, made only where asked, and kept cheaply."""

import dataclasses
import itertools

import pytest
import torch
from agreement import assert_gradients
from torch.utils.checkpoint import checkpoint

from accel import ops, testing
from accel.contracts import CONTRACTS, LINEAR

F64 = torch.float64

pytestmark = pytest.mark.usefixtures("torch_serves")


def made(*shapes):
    torch.manual_seed(0)
    return tuple(torch.randn(*shape, dtype=F64) for shape in shapes)


ACTS = ["relu", "gelu", "gelu_tanh", "silu"]
CASES = {
    "linear": [(made((3, 4), (2, 4), (2,)), (None, None))]
    + [(made((2, 3), (2, 3), (2,)), (act, None)) for act in ACTS],
    "gated_linear": [(made((2, 3), (2, 3), (2, 3), (2,), (2,)), (act, None)) for act in ACTS],
    "norm_linear": [
        (made((2, 3), (2, 3), (3,), (3,), (2,)), ("layer", 1e-5, act, None))
        for act in (None, "silu")
    ],
    "tiled_mlp": [
        (made((5, 3), (4, 3), (2, 4), (4, 3), (4,), (2,), (4,)), (act, 2)) for act in ACTS[2:]
    ],
    "rms_norm": [(made((2, 3), (3,)), (1e-6,)), (made((2, 2, 3), (3,)), (0.5,))],
    "layer_norm": [
        (made((2, 3), (3,), (3,)), (1e-5,)),
        (made((2, 2, 3), (3,), (3,)), (0.5,)),
    ],
    "bias_act": [(made((2, 3), (3,)), (act,)) for act in ACTS],
    "softmax": [(made((2, 3), (3,)), (0.7,))],
}
EVERY = [(op, *case) for op, cases in CASES.items() for case in cases]
each_case = pytest.mark.parametrize(
    ("op", "tensors", "options"),
    EVERY,
    ids=[f"{op}-{options[0]}" for op, _, options in EVERY],
)
each_op = pytest.mark.parametrize(
    ("op", "tensors", "options"), [(op, *cases[0]) for op, cases in CASES.items()], ids=list(CASES)
)


@each_case
def test_first_and_second_derivatives_are_right(op, tensors, options, call):
    leaves = [t.clone().requires_grad_() for t in tensors]
    function = lambda *t: call(op, (*t, *options))  # noqa: E731
    assert_gradients(function, leaves)


@pytest.mark.parametrize("rows", [(3,), (0, 3), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("op", CASES)
def test_any_rows_have_gradients(op, rows, call):
    leaves = [t.clone().requires_grad_() for t in (*made(rows), *CASES[op][-1][0][1:])]
    y = call(op, (*leaves, *CASES[op][-1][1]))
    grads = torch.autograd.grad(y.sum(), leaves)
    assert [g.shape for g in grads] == [leaf.shape for leaf in leaves]
    if 0 in rows:
        assert all(not g.any() for g in grads)


@pytest.mark.parametrize("op", ["linear", "gated_linear", "rms_norm", "layer_norm"])
def test_a_sum_over_nothing_has_gradients(op, call):
    x, w, b = torch.ones(4, 0), torch.ones(2, 0), torch.ones(2)
    args = {
        "linear": (x, w, b, "silu", None),
        "gated_linear": (x, w, w.clone(), b, b.clone(), "silu", None),
        "rms_norm": (x, torch.ones(0), 1e-6),
        "layer_norm": (x, torch.ones(0), torch.ones(0), 1e-5),
    }[op]
    leaves = [a.requires_grad_() for a in args if isinstance(a, torch.Tensor)]
    grads = torch.autograd.grad(call(op, args).sum(), leaves)
    assert [g.shape for g in grads] == [leaf.shape for leaf in leaves]


@each_op
def test_only_what_needs_a_gradient_gets_one_and_the_same(op, tensors, options, call):
    leaves = [t.clone().requires_grad_() for t in tensors]
    want = torch.autograd.grad(call(op, (*leaves, *options)).square().sum(), leaves)
    for mask in itertools.product([False, True], repeat=len(tensors)):
        mine = [t.clone().requires_grad_(need) for t, need in zip(tensors, mask)]
        y = call(op, (*mine, *options))
        assert y.requires_grad == any(mask)
        if any(mask):
            y.square().sum().backward()
        for leaf, need, expected in zip(mine, mask, want):
            assert (leaf.grad is not None) == need
            assert not need or torch.equal(leaf.grad, expected)


@pytest.fixture
def formula(monkeypatch):
    """The calls of linear's gradient formula: (needs, arguments)."""
    calls = []

    def backward(grad, needs, *args):
        calls.append((tuple(needs), args))
        return LINEAR.backward(grad, needs, *args)

    monkeypatch.setitem(CONTRACTS, "linear", dataclasses.replace(LINEAR, backward=backward))
    return calls


def test_no_gradient_is_made_where_none_is_asked(formula):
    x, w, b = made((3, 4), (2, 4), (2,))
    ops.linear(x, w.requires_grad_(), b).sum().backward()
    ((needs, _),) = formula
    assert needs[:3] == (False, True, False)


def test_a_parameter_is_a_parameter_in_the_backward(formula):
    """Optimisers and sharding hang attributes on parameters; a formula may look for them."""
    w = torch.nn.Parameter(torch.randn(2, 4))
    ops.linear(torch.randn(3, 4), w).sum().backward()
    ((_, args),) = formula
    assert args[1] is w


@each_op
def test_arguments_are_kept_as_they_are_and_not_copied(op, tensors, options, call):
    leaves = [t.clone().requires_grad_() for t in tensors]
    kept = []
    keep = lambda t: kept.append(t) or t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = call(op, (*leaves, *options))
    read = [t for t in kept if t.untyped_storage().nbytes() > F64.itemsize]
    assert {t.data_ptr() for t in read} <= {t.data_ptr() for t in (*leaves, y)}
    assert kept
    y.sum().backward()


@pytest.mark.parametrize("op", [op for op in CONTRACTS if CONTRACTS[op].unread])
def test_what_the_formula_does_not_read_is_not_kept(op, call):
    contract = CONTRACTS[op]
    made = [sample.make(F64, torch.device(testing.HOST)) for sample in contract.samples()]
    args = max(made, key=lambda args: sum(isinstance(arg, torch.Tensor) for arg in args))
    tensors = dict(zip(contract.parameters, args[: contract.tensor_count]))
    contract.key(args).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = call(op, args)
    places = {t.data_ptr() for t in kept}
    assert {name for name, t in tensors.items() if t.data_ptr() not in places} == {*contract.unread}
    known = {t.data_ptr() for t in (*tensors.values(), y)}
    in_place_of = [t for t in kept if t.data_ptr() not in known]
    assert [t.untyped_storage().nbytes() for t in in_place_of] == [F64.itemsize] * len(in_place_of)


@each_op
def test_saved_tensors_may_be_packed_and_unpacked(op, tensors, options, call):
    leaves = [t.clone().requires_grad_() for t in tensors]
    want = torch.autograd.grad(call(op, (*leaves, *options)).sum(), leaves)
    pack = lambda t: (t.detach().numpy().copy(), t.dtype)  # noqa: E731
    unpack = lambda packed: torch.from_numpy(packed[0]).to(packed[1])  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        y = call(op, (*leaves, *options))
    for got, expected in zip(torch.autograd.grad(y.sum(), leaves), want):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("reentrant", [False, True])
@each_op
def test_activation_checkpointing_gives_the_same_gradients(op, tensors, options, call, reentrant):
    def block(*t):
        return call(op, (t[0].tanh(), *t[1:], *options)).tanh()

    leaves = [t.clone().requires_grad_() for t in tensors]
    want = torch.autograd.grad(block(*leaves).sum(), leaves)
    checkpoint(block, *leaves, use_reentrant=reentrant).sum().backward()
    for leaf, expected in zip(leaves, want):
        assert torch.equal(leaf.grad, expected)


def test_a_saved_weight_changed_in_place_is_noticed():
    x, w = torch.randn(3, 4), torch.randn(2, 4, requires_grad=True)
    y = ops.linear(x.requires_grad_(), w)
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_graph_may_be_kept_and_is_freed_otherwise():
    x, w = torch.randn(3, 4), torch.randn(2, 4, requires_grad=True)
    y = ops.linear(x, w).sum()
    y.backward(retain_graph=True)
    first = w.grad.clone()
    y.backward()
    assert torch.allclose(w.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


@pytest.mark.parametrize("op", CONTRACTS)
def test_the_graph_names_the_op(op, call):
    args = next(iter(CONTRACTS[op].samples())).make(F64, torch.device(testing.HOST))
    CONTRACTS[op].key(args).requires_grad_()
    result = call(op, args)
    for y in result if isinstance(result, tuple) else (result,):
        assert y.grad_fn.name() == f"{op}Backward"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_gradients_have_their_arguments_dtype(dtype):
    x, w, b = (t.to(dtype).requires_grad_() for t in made((3, 4), (2, 4), (2,)))
    y = ops.linear(x, w, b, act="silu", out_dtype=torch.float32)
    assert y.dtype is torch.float32
    assert {g.dtype for g in torch.autograd.grad(y.sum(), (x, w, b))} == {dtype}
