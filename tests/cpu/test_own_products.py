"""The gradients of products by this backend's own kernels: of the dtypes whose products torch has
slowly here, right, as the contract's, and nowhere else; and what is kept for them."""

import pytest
import torch
from instruction_sets import randn

from accel import ops
from accel.contracts import CONTRACTS
from accel_conformance.measure import exact, shares
from accel_cpu import gradients

NATIVE = ";".join(f"{op}=accel_cpu.native" for op in ("linear", "gated_linear", "tiled_linear"))
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _native():
    with ops.use(NATIVE):
        yield


@pytest.fixture
def products(monkeypatch):
    """How often a gradient was made by this backend's products; all half dtypes are."""
    monkeypatch.setattr(gradients, "slow_in_torch", lambda: frozenset(HALF))
    calls = []
    plain = gradients._of_product

    def counted(*args):
        calls.append(args)
        return plain(*args)

    monkeypatch.setattr(gradients, "_of_product", counted)
    return calls


def arguments(op, m, dtype):
    tensors = [randn(2, m, 70), randn(90, 70, seed=1), randn(90, seed=2), randn(2, m, 90, seed=3)]
    tensors = tensors[: 3 if op is ops.linear else 4]
    return [t.to(dtype).requires_grad_() for t in tensors]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("m", [3, 100])
@pytest.mark.parametrize("op", [ops.linear, ops.tiled_linear])
def test_they_are_right(op, m, dtype, products):
    args = arguments(op, m, dtype)
    grad = randn(2, m, 90, dtype=dtype, seed=4)
    found = torch.autograd.grad(op(*args), args, grad)
    assert len(products) == 1
    contract = CONTRACTS[op.__name__]
    wide = [arg.detach().double() for arg in args]
    options = (None,) * len(contract.options)
    want = contract.backward(grad.double(), (True,) * len(args), *wide, *options)
    for one, other in zip(found, want):
        used = shares(one, exact(other), contract.tolerance[dtype])
        assert used.within, str(used)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_through_an_activation_they_are_right(dtype, products):
    x, w, b = arguments(ops.linear, 20, dtype)
    grad = randn(2, 20, 90, dtype=dtype, seed=4)
    w = (w.detach() / 8).requires_grad_()
    found = torch.autograd.grad(ops.linear(x, w, b, act="silu"), (x, w, b), grad)
    assert len(products) == 1
    wide = [arg.detach().double() for arg in (x, w, b)]
    want = CONTRACTS["linear"].backward(grad.double(), (True,) * 3, *wide, "silu", None)
    for one, other in zip(found, want):
        used = shares(one, exact(other), CONTRACTS["norm_linear"].tolerance[dtype])
        assert used.within, str(used)  # rounded before the products and after


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_only_what_is_asked_for_is_computed(dtype, products):
    x, w, b = arguments(ops.linear, 3, dtype)
    (found,) = torch.autograd.grad(ops.linear(x, w.detach(), b.detach()).sum(), x)
    assert found.shape == x.shape
    ((_, needs, *_),) = products
    assert tuple(needs[:3]) == (True, False, False)


def test_where_they_are_recorded_or_torch_is_as_fast_the_contracts_serve(products):
    x, w, b = arguments(ops.linear, 3, torch.bfloat16)
    first = torch.autograd.grad(ops.linear(x, w, b).sum(), x, create_graph=True)[0]
    torch.autograd.grad(first.float().square().sum(), w)
    plain = arguments(ops.linear, 3, torch.float32)
    torch.autograd.grad(ops.linear(*plain).sum(), plain)
    assert not products


# -- what is kept -----------------------------------------------------------------------------

ACTS = ("relu", "gelu", "gelu_tanh", "silu")


def activated(name, act, dtype, biased, m=37, k=70, n=90):
    """``(call, tensors)``: an op with an activation, and what it is a function of."""
    weights = 1 if name == "linear" else 2
    tensors = [randn(m, k), *(randn(n, k, seed=1 + i) / 8 for i in range(weights))]
    tensors += [randn(n, seed=5 + i) for i in range(weights)] if biased else [None] * weights
    tensors = [None if t is None else t.to(dtype).requires_grad_() for t in tensors]
    return (lambda *given: getattr(ops, name)(*given, act=act)), tensors


def given(tensors):
    return [t for t in tensors if t is not None]


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", ["linear", "gated_linear"])
def test_a_result_is_the_same_where_its_gradient_is_wanted(name, act, dtype, biased):
    call, tensors = activated(name, act, dtype, biased)
    y = call(*tensors)
    with torch.no_grad():
        assert torch.equal(y, call(*tensors))
    grad = randn(*y.shape, dtype=dtype, seed=9)
    first = torch.autograd.grad(y, given(tensors), grad, retain_graph=True)
    again = torch.autograd.grad(y, given(tensors), grad)  # what is kept is only read
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize(("name", "act", "each"), [
    ("linear", None, 0), ("linear", "gelu", 1), ("gated_linear", "silu", 2),
])  # fmt: skip
def test_of_an_activation_the_products_before_it_are_kept_and_nothing_else(name, act, each):
    call, tensors = activated(name, act, torch.bfloat16, biased=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = call(*tensors)
    known = {t.data_ptr() for t in given(tensors)}
    more = [t for t in kept if t.data_ptr() not in known]
    assert [(t.shape, t.dtype) for t in more] == [(y.shape, torch.float32)] * each


def test_no_product_is_made_again(monkeypatch):
    call, tensors = activated("gated_linear", "silu", torch.float32, biased=False)
    monkeypatch.setattr(gradients, "slow_in_torch", lambda: frozenset({torch.float32}))
    product = torch.ops.accel_cpu_kernels.linear_native.default
    with torch.profiler.profile() as profile:
        torch.autograd.grad(call(*tensors).sum(), given(tensors))
    made = [e.count for e in profile.key_averages() if e.key == product._schema.name]
    assert made == [4]  # dx and dw of both
