"""What the ZeRO-3 linear keeps for its backward: the Parameter as it is, and nothing made of it."""

import pytest
import torch
import torch.nn.functional as F
from linear_twins import drawn
from torch import nn

from accel import ops, testing
from accel.layers.zero3 import zero3_linear_wrap

HOST, F32, BF16 = testing.HOST, torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def torch_serves():
    with ops.use("*=torch", exact=False):
        yield


def swapped(linear):
    """Whether the weight's bytes are gone between a forward and its backward when its ``data`` is
    swapped, as ZeRO does; and the gradients."""
    x, w, b = (nn.Parameter(drawn(*s, dtype=F32)) for s in ((3, 4), (5, 4), (5,)))
    there = w.detach().clone()
    y = linear(x, w, b)
    bytes_of = w.untyped_storage()._weak_ref()
    w.data = torch.empty(0)
    gone = torch.UntypedStorage._expired(bytes_of)
    torch.UntypedStorage._free_weak_ref(bytes_of)
    w.data = there
    y.sum().backward()
    return gone, (x.grad, w.grad, b.grad)


@pytest.mark.parametrize("linear", [zero3_linear_wrap, ops.linear], ids=["zero3", "ops"])
def test_the_weight_s_bytes_go_when_sharding_takes_them(linear):
    gone, grads = swapped(linear)
    kept, want = swapped(F.linear)
    assert gone
    assert not kept, "torch's linear keeps them, or this test sees nothing"
    torch.testing.assert_close(grads, want)


def saved_bytes(function, *args):
    """Of tensors kept for the backward that are no leaves."""
    kept = {}
    leaves = {a.untyped_storage().data_ptr() for a in args}

    def keep(t):
        if t.untyped_storage().data_ptr() not in leaves:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        function(*args)
    return sum(kept.values())


def test_under_autocast_no_cast_of_the_weight_is_kept():
    x, w = drawn(2, 64, dtype=F32).requires_grad_(), drawn(64, 64, dtype=F32).requires_grad_()
    with torch.autocast(HOST, dtype=BF16):
        assert saved_bytes(zero3_linear_wrap, x, w) == 0
        assert saved_bytes(F.linear, x, w) >= w.numel() * BF16.itemsize


def test_the_parameter_itself_is_kept():
    w = nn.Parameter(drawn(5, 4, dtype=F32))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = zero3_linear_wrap(drawn(3, 4, dtype=F32), w)
    assert any(t is w for t in kept)
    assert y.grad_fn is not None


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_the_result_is_no_view(shape, bias):
    x, w, b = drawn(*shape, dtype=F32), nn.Parameter(drawn(5, 4, dtype=F32)), torch.ones(5)
    for linear in (zero3_linear_wrap, ops.linear):
        assert not linear(x, w, b if bias else None)._is_view()
