"""Ops under torch.func: grad, vmap, their compositions, and what leaks out of a transform."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jacrev, jvp, vmap

from accel import ops, testing

pytestmark = pytest.mark.usefixtures("torch_serves")

F64 = torch.float64


def linear(x, w, b):
    return ops.linear(x, w, b, act="silu")


def norm(x, w, b):
    return ops.rms_norm(x, w, eps=0.1) + b


def gated(x, w, b):
    return ops.gated_linear(x, w, w.flip(0), b, None)


def experts(x, w, b):
    return ops.grouped_linear(x, torch.stack([w, w.flip(0)]), torch.tensor([1, 3]), act="gelu") + b


def tiled(x, w, b):
    return ops.tiled_mlp(x, w, w.flip(0).t(), w.flip(1), b, tile_rows=2)


FUNCTIONS = {
    "linear": (linear, (5, 4)),
    "gated_linear": (gated, (5, 4)),
    "rms_norm": (norm, (4,)),
    "grouped_linear": (experts, (5, 4)),
    "tiled_mlp": (tiled, (5, 4)),
}
each = pytest.mark.parametrize(("function", "weight"), FUNCTIONS.values(), ids=FUNCTIONS)


def made(*shape):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(len(shape)))


def arguments(weight):
    return made(3, 4), made(*weight), made(weight[0])


def by_autograd(function, args):
    leaves = [a.clone().requires_grad_() for a in args]
    return torch.autograd.grad(function(*leaves).square().sum(), leaves)


def summed(function):
    return lambda *args: function(*args).square().sum()


@each
def test_grad_is_what_autograd_says(function, weight):
    args = arguments(weight)
    got = grad(summed(function), argnums=(0, 1, 2))(*args)
    torch.testing.assert_close(got, by_autograd(function, args))


@each
@pytest.mark.parametrize(
    "in_dims", [(0, None, None), (None, 0, None), (0, 0, None), (0, 0, 0), (1, None, 0)], ids=str
)
def test_vmap_is_a_loop(function, weight, in_dims):
    sizes = ((3, 4), weight, weight[:1])
    args = [
        made(*size) if d is None else made(*size[:d], 2, *size[d:])
        for size, d in zip(sizes, in_dims)
    ]
    want = torch.stack(
        [
            function(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims)))
            for i in range(2)
        ]
    )
    torch.testing.assert_close(vmap(function, in_dims)(*args), want)


def test_a_batch_of_rows_is_more_rows():
    calls = testing.Calls()
    kernel = testing.fake_builder({"linear": testing.fake_kernel("linear", calls)})
    with testing.installed(testing.fake_backend(builders=[kernel])):
        vmap(lambda x: ops.linear(x, torch.ones(5, 4)))(torch.ones(6, 3, 4))
    assert len(calls) == 1


@each
def test_vmaps_nest(function, weight):
    x, w, b = made(2, 6, 3, 4), made(6, *weight), made(weight[0])
    got = vmap(vmap(function, (0, 0, None)), (0, None, None))(x, w, b)
    want = torch.stack(
        [torch.stack([function(x[i, j], w[j], b) for j in range(6)]) for i in (0, 1)]
    )
    torch.testing.assert_close(got, want)


@each
def test_gradients_per_sample(function, weight):
    x, w, b = made(6, 3, 4), made(*weight), made(weight[0])
    got = vmap(grad(summed(function), argnums=1), (0, None, None))(x, w, b)
    want = torch.stack([by_autograd(function, (row, w, b))[1] for row in x])
    torch.testing.assert_close(got, want)


@each
def test_jacrev_is_the_jacobian(function, weight):
    args = arguments(weight)
    got = jacrev(function, argnums=1)(*args)
    want = torch.autograd.functional.jacobian(lambda w: function(args[0], w, args[2]), args[1])
    torch.testing.assert_close(got, want)


@each
def test_second_derivatives_compose(function, weight):
    args = arguments(weight)
    got = jacrev(grad(summed(function)))(*args)
    want = torch.autograd.functional.hessian(
        lambda x: summed(function)(x, *args[1:]), args[0], vectorize=False
    )
    torch.testing.assert_close(got, want)


def test_an_ordinary_gradient_flows_through_a_vmap():
    x, w = made(2, 3, 4).requires_grad_(), made(5, 4).requires_grad_()
    vmap(lambda row: ops.linear(row, w))(x).square().sum().backward()
    flat = x.detach().reshape(6, 4).requires_grad_()
    other = w.detach().clone().requires_grad_()
    ops.linear(flat, other).square().sum().backward()
    torch.testing.assert_close(x.grad.reshape(6, 4), flat.grad)
    torch.testing.assert_close(w.grad, other.grad)


def test_what_leaked_out_of_a_transform_still_works():
    leaked = []
    grad(lambda x: (leaked.append(x), x.sum())[1])(made(3, 4))
    w = made(5, 4).requires_grad_()
    want = made(3, 4)
    y = ops.linear(leaked[0], w)
    torch.testing.assert_close(y, want @ w.t(), check_device=False)
    y.sum().backward()
    torch.testing.assert_close(w.grad, want.sum(0).expand(5, 4))


# -- forward mode: right or refused, never silently zero ---------------------------------------


def test_forward_mode_is_refused_under_functorch():
    x, w = made(3, 4), made(5, 4)
    with pytest.raises(NotImplementedError, match="forward mode"):
        jvp(lambda x: ops.linear(x, w), (x,), (x,))


@pytest.mark.parametrize("recorded", [False, True])
def test_forward_mode_is_right_or_refused_outside(recorded):
    x, w = made(3, 4), made(5, 4).requires_grad_(recorded)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        try:
            tangent = forward_ad.unpack_dual(ops.linear(dual, w)).tangent
        except NotImplementedError:
            return
    torch.testing.assert_close(tangent, torch.ones_like(x) @ w.t())
