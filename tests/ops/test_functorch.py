"""Ops under torch.func: grad, vmap, jvp, their compositions, and what leaks out of a transform."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from accel import ops, testing
from accel.contracts import CONTRACTS

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


# -- forward mode ------------------------------------------------------------------------------


def leaves_of(op, call):
    """(a function of the floating point arguments of the op's fullest small sample, these)"""
    contract = CONTRACTS[op]
    made = [sample.make(F64, torch.device(testing.HOST)) for sample in contract.samples()]
    small = [args for args in made if 0 < contract.key(args).numel() < 1000]
    args = max(small, key=lambda args: sum(isinstance(arg, torch.Tensor) for arg in args))
    floats = [i for i, a in enumerate(args) if torch.is_tensor(a) and a.is_floating_point()]

    def function(*leaves):
        given = list(args)
        for i, leaf in zip(floats, leaves):
            given[i] = leaf
        results = call(op, given)
        return results if isinstance(results, tuple) else (results,)

    return function, tuple(args[i].contiguous() for i in floats)


@pytest.mark.parametrize("op", CONTRACTS)
def test_forward_mode_is_reverse_mode_transposed(op, call):
    function, leaves = leaves_of(op, call)
    directions = tuple(torch.randn_like(leaf) for leaf in leaves)
    results, tangents = jvp(function, leaves, directions)
    incoming = tuple(torch.randn_like(result) for result in results)
    _, pull_back = torch.func.vjp(function, *leaves)
    forth = sum((u * t).sum() for u, t in zip(incoming, tangents))
    back = sum((g * d).sum() for g, d in zip(pull_back(incoming), directions))
    torch.testing.assert_close(forth, back)
    with forward_ad.dual_level():
        duals = function(*map(forward_ad.make_dual, leaves, directions))
        eager = tuple(forward_ad.unpack_dual(dual).tangent for dual in duals)
    torch.testing.assert_close(eager, tangents)


@each
def test_jacfwd_is_jacrev(function, weight):
    args = arguments(weight)
    torch.testing.assert_close(jacfwd(function, 1)(*args), jacrev(function, 1)(*args))


def test_forward_mode_is_right_by_finite_differences():
    leaves = [t.requires_grad_() for t in arguments((5, 4))]
    assert torch.autograd.gradcheck(linear, leaves, check_forward_ad=True)


def test_a_hessian_goes_through_ops():
    x, w, scale = made(2, 4), made(3, 4), made(3)

    def loss(w):
        return ops.rms_norm(ops.linear(x, w, act="gelu"), scale, eps=0.1).square().sum()

    want = torch.autograd.functional.hessian(loss, w)
    torch.testing.assert_close(torch.func.hessian(loss)(w), want)
    torch.testing.assert_close(jacrev(jacfwd(loss))(w), want)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_kernel_that_torch_cannot_look_into_has_a_tangent(recorded):
    def kernel(x, w, *rest):
        return torch.from_numpy(x.detach().numpy() @ w.detach().numpy().T)

    builder = testing.fake_builder({"linear": kernel}, dtypes=frozenset({F64}))
    x, w = made(3, 4), made(5, 4).requires_grad_(recorded)
    with testing.installed(testing.fake_backend(builders=[builder])), forward_ad.dual_level():
        y = ops.linear(forward_ad.make_dual(x, torch.ones_like(x)), w)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, torch.ones_like(x) @ w.t())
        assert y.requires_grad == recorded
