"""Ops under autocast: products in its dtype, norms in their input's, float64 left alone."""

import pytest
import torch

from accel import ops, testing

HOST = testing.HOST
BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64

pytestmark = pytest.mark.usefixtures("torch_serves")


def autocast(dtype=BF16, **settings):
    return torch.autocast(HOST, dtype=dtype, **settings)


def made(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


X, W, B = made(3, 8), made(5, 8), made(5)


@pytest.mark.parametrize("lower", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize("act", [None, "silu"])
def test_a_product_runs_in_autocast_s_dtype(lower, act):
    with autocast(lower):
        got = ops.linear(X, W, B, act=act)
    assert got.dtype is lower
    assert torch.equal(got, ops.linear(X.to(lower), W.to(lower), B.to(lower), act=act))


def test_an_explicit_result_dtype_stays():
    with autocast():
        assert ops.linear(X, W, out_dtype=F32).dtype is F32
        assert ops.gated_linear(X, W, W).dtype is BF16


@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
def test_a_norm_runs_in_its_input_s_dtype(dtype):
    x, w = X.to(dtype), made(8)
    with autocast():
        got = ops.rms_norm(x, w)
    assert got.dtype is dtype
    assert torch.equal(got, ops.rms_norm(x, w.to(dtype)))


def test_float64_is_not_lowered():
    with autocast():
        assert ops.linear(X.double(), W.double()).dtype is F64


def test_arguments_of_several_dtypes_are_brought_together():
    with autocast():
        got = ops.linear(X, W.to(BF16), B)
    assert torch.equal(got, ops.linear(X.to(BF16), W.to(BF16), B.to(BF16)))


def test_autocast_that_is_disabled_or_for_another_device_changes_nothing():
    want = ops.linear(X, W)
    with autocast(enabled=False):
        assert torch.equal(ops.linear(X, W), want)
    with autocast(), autocast(enabled=False):
        assert torch.equal(ops.linear(X, W), want)
    torch.set_autocast_enabled("cuda", True)  # takes no device
    try:
        assert torch.equal(ops.linear(X, W), want)
    finally:
        torch.set_autocast_enabled("cuda", False)


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def by_hand():
    x, w, b = leaves(X, W, B)
    ops.linear(x.to(BF16), w.to(BF16), b.to(BF16), act="gelu").float().sum().backward()
    return x.grad, w.grad, b.grad


@pytest.mark.parametrize("inside", [False, True])
def test_gradients_come_back_in_the_leaves_dtype_wherever_backward_runs(inside):
    x, w, b = leaves(X, W, B)
    with autocast():
        loss = ops.linear(x, w, b, act="gelu").float().sum()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    for leaf, want in zip((x, w, b), by_hand()):
        assert leaf.grad.dtype is F32
        assert torch.equal(leaf.grad, want)


def test_a_backward_inside_autocast_of_a_forward_outside_keeps_full_precision():
    x, w, b = leaves(X, W, B)
    want = torch.autograd.grad(ops.linear(x, w, b, act="gelu").sum(), (x, w, b))
    loss = ops.linear(x, w, b, act="gelu").sum()
    with autocast():
        got = torch.autograd.grad(loss, (x, w, b))
    assert all(torch.equal(one, two) for one, two in zip(got, want))


def test_autocast_and_functorch_compose():
    with autocast():
        got = torch.func.grad(lambda w: ops.linear(X, w, B, act="gelu").float().sum())(W)
    assert got.dtype is F32
    assert torch.equal(got, by_hand()[1])


def test_autocast_and_compilation_compose():
    def function(x, w, b):
        with autocast():
            return ops.linear(x, w, b, act="gelu")

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    x, w, b = leaves(X, W, B)
    got = compiled(x, w, b)
    assert torch.equal(got, function(X, W, B))
    got.float().sum().backward()
    assert torch.equal(w.grad, by_hand()[1])
