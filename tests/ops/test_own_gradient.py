"""A kernel that brings a gradient of its own: where it serves, and where the contract's does."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad

from accel import Kernel, ops, testing
from accel.contracts import CONTRACTS
from accel.ops import binding

F64 = torch.float64
HOST = torch.device(testing.HOST)

# One result; several; several that the contract's gradient reads.
OPS = ("linear", "add_norm", "logprob")


def each(results):
    return results if isinstance(results, tuple) else (results,)


@pytest.fixture(params=OPS)
def own(request, monkeypatch, call):
    """An op whose kernel brings a gradient, ``factor`` times the contract's; ``calls`` names whose
    served, ``kept`` is a tensor that is kept for it."""
    contract = CONTRACTS[request.param]
    calls, kept, factor = [], [], [2.0]

    def formula(*args, **results):
        calls.append("contract")
        return contract.backward(*args, **results)

    def backward(grad, needs, *args, kept):
        calls.append("own")
        *results, times = kept
        results = {"results": tuple(results)} if contract.keeps_results else {}
        with torch.no_grad():
            found = contract.backward(grad, needs, *args, **results)
            return [None if one is None else one * times for one in found]

    def forward(*args):
        results = contract.reference(*args)
        kept[:] = [torch.tensor(factor[0], dtype=F64)]
        return results, (*each(results), *kept), backward

    kernel = Kernel(contract.reference, forward)
    builder = testing.fake_builder({contract.name: kernel}, dtypes=frozenset({F64}))
    monkeypatch.setitem(CONTRACTS, contract.name, dataclasses.replace(contract, backward=formula))
    with testing.installed(testing.fake_backend(builders=[builder])), ops.use(exact=False):
        args = next(iter(contract.samples())).make(F64, HOST)
        floats = [i for i, a in enumerate(args) if torch.is_tensor(a) and a.is_floating_point()]

        def of(*leaves):
            given = list(args)
            for i, leaf in zip(floats, leaves):
                given[i] = leaf
            results = each(call(contract.name, given))
            return sum(one.square().sum() for one in results)

        leaves = [args[i].clone().requires_grad_() for i in floats]
        yield SimpleNamespace(of=of, leaves=leaves, calls=calls, kept=kept, factor=factor)


def gradients(own, **how):
    return torch.autograd.grad(own.of(*own.leaves), own.leaves, **how)


def test_the_kernel_s_own_serves_backward_and_the_contract_s_what_is_recorded_further(own):
    mine = gradients(own)
    assert own.calls == ["own"]
    contract_s = gradients(own, create_graph=True)
    assert own.calls == ["own", "contract"]
    for one, other in zip(mine, contract_s, strict=True):
        torch.testing.assert_close(one, 2 * other.detach())


def test_derivatives_of_all_orders_are_right(own):
    own.factor[0] = 1.0
    assert torch.autograd.gradcheck(own.of, own.leaves, fast_mode=True)
    assert set(own.calls) == {"own"}
    assert torch.autograd.gradgradcheck(own.of, own.leaves, fast_mode=True)


def test_under_transforms_the_contract_s_serves(own):
    loss = own.of(*own.leaves)
    grads = torch.ones(2, dtype=F64)
    batched = torch.autograd.grad(loss, own.leaves, grads, is_grads_batched=True)
    per_sample = torch.func.grad(own.of, tuple(range(len(own.leaves))))(*own.leaves)
    assert set(own.calls) == {"contract"}
    for one, other in zip(batched, per_sample, strict=True):
        torch.testing.assert_close(one[1], other)


def test_a_gradient_with_a_tangent_is_the_contract_s(own):
    loss = own.of(*own.leaves)
    one = torch.ones((), dtype=F64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(one, 3 * one)
        found = torch.autograd.grad(loss, own.leaves, dual)
        tangents = [forward_ad.unpack_dual(grad).tangent for grad in found]
    assert own.calls == ["contract"]
    for grad, tangent in zip(found, tangents, strict=True):
        torch.testing.assert_close(tangent, 3 * grad)


def test_only_what_needs_a_gradient_gets_one(own):
    first, *others = own.leaves
    want = gradients(own)[0]
    own.of(first, *(t.detach() for t in others)).backward()
    assert torch.equal(first.grad, want)


def test_the_graph_may_be_kept_and_is_freed_otherwise(own):
    loss = own.of(*own.leaves)
    first = torch.autograd.grad(loss, own.leaves, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, own.leaves), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, own.leaves)
    assert own.calls == ["own", "own"]


@pytest.mark.parametrize("which", ["an argument", "what is kept"])
def test_what_is_saved_and_changed_in_place_is_noticed(own, which):
    loss = own.of(*own.leaves)
    with torch.no_grad():
        (own.leaves[0] if which == "an argument" else own.kept[0]).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, own.leaves)
    assert own.calls == []


def test_hooks_see_what_is_kept(own):
    want = gradients(own)
    seen = []

    def pack(t):
        seen.append(t.data_ptr())
        return t.detach().numpy().copy()

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        loss = own.of(*own.leaves)
    assert own.kept[0].data_ptr() in seen
    for one, other in zip(torch.autograd.grad(loss, own.leaves), want, strict=True):
        assert torch.equal(one, other)


def test_nothing_is_cast_in_a_backward_under_autocast(own):
    want = gradients(own)
    loss = own.of(*own.leaves)
    with torch.autocast(testing.HOST, dtype=torch.bfloat16):
        found = torch.autograd.grad(loss, own.leaves)
    assert all(torch.equal(one, other) for one, other in zip(found, want, strict=True))


def test_a_kernel_may_leave_a_call_to_the_contract_s():
    contract = CONTRACTS["linear"]
    forward = lambda *args: (contract.reference(*args), (), None)  # noqa: E731
    kernel = Kernel(contract.reference, forward)
    builder = testing.fake_builder({"linear": kernel})
    x, w = torch.randn(2, 3), torch.randn(4, 3, requires_grad=True)
    with testing.installed(testing.fake_backend(builders=[builder])):
        ops.linear(x, w).sum().backward()
    torch.testing.assert_close(w.grad, x.sum(0).expand(4, 3))


def test_a_fallback_that_is_counted_keeps_its_gradient():
    def forward(*args):
        return "result", (), None

    registry = SimpleNamespace(fallbacks={"linear": 0})
    counted = binding._counted(Kernel(len, forward), registry, "linear")
    assert (counted("ab"), counted.forward()) == (2, ("result", (), None))
    assert registry.fallbacks == {"linear": 2}
