"""The gradients of products by this backend's own kernels: of the dtypes whose products torch has
slowly here, right, as the contract's, and nowhere else."""

import pytest
import torch
from instruction_sets import randn

from accel import ops
from accel.contracts import CONTRACTS
from accel_conformance.measure import exact, shares
from accel_cpu import gradients

NATIVE = "linear=accel_cpu.native;tiled_linear=accel_cpu.native"
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
