"""grouped_linear: which rows are whose, read on the host and by masks; norm_linear in one word."""

import pytest
import torch
from agreement import assert_agree, assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap

from accel import ops
from accel.errors import OpArgumentError

F64 = torch.float64

pytestmark = pytest.mark.usefixtures("torch_serves")


def made(*shape):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(sum(shape)))


def by_loop(x, w, ends, b, act=None):
    """Row by row, as the words say."""
    rows, start = [], 0
    for e, end in enumerate(ends.tolist()):
        rows += [ops.linear(row, w[e], b[e], act=act) for row in x[start:end]]
        start = end
    rows += [x.new_zeros(w.shape[1])] * (len(x) - start)
    return torch.stack(rows) if rows else x.new_zeros(0, w.shape[1])


@given(st.lists(st.integers(0, 3), max_size=5), st.integers(0, 2))
@settings(deadline=None, max_examples=40)
def test_each_row_meets_its_own_expert(counts, rest):
    ends = torch.tensor(counts, dtype=torch.int64).cumsum(0)
    experts = len(counts)
    x, w, b = made(sum(counts) + rest, 4), made(experts, 3, 4), made(experts, 3)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    got, want = ops.grouped_linear(x, w, ends, b, act="gelu"), by_loop(x, w, ends, b, "gelu")
    assert_agree(got, want)
    upstream = made(*got.shape)
    found, wanted = (
        torch.autograd.grad(y, leaves, upstream, materialize_grads=True, allow_unused=True)
        for y in (got, want)
    ) if want.requires_grad else ((), ())  # fmt: skip
    assert_agree(found, wanted)


X, W, B, ENDS = made(7, 4), made(3, 2, 4), made(3, 2), torch.tensor([3, 3, 6])


def test_first_and_second_derivatives_are_right():
    leaves = [t.clone().requires_grad_() for t in (X, W, B)]
    function = lambda x, w, b: ops.grouped_linear(x, w, ENDS, b, act="silu")  # noqa: E731
    assert_gradients(function, leaves)


def squares(x, w, b):
    return ops.grouped_linear(x, w, ENDS, b, act="silu").square().sum()


def test_where_ends_cannot_be_read_gradients_are_the_same():
    leaves = [t.clone().requires_grad_() for t in (X, W, B)]
    want = torch.autograd.grad(squares(*leaves), leaves)
    torch.testing.assert_close(grad(squares, argnums=(0, 1, 2))(X, W, B), want)
    each = vmap(grad(squares, argnums=1), (0, None, None))(torch.stack([X, 2 * X]), W, B)
    torch.testing.assert_close(each[0], want[1])


@pytest.mark.parametrize("transformed", [False, True])
def test_what_is_no_number_stays_with_its_expert(transformed):
    x, w = X.clone(), W.clone()
    x[0], w[0] = torch.nan, torch.inf
    if transformed:
        dx, dw = grad(squares, argnums=(0, 1))(x, w, B)
    else:
        leaves = [x.requires_grad_(), w.requires_grad_()]
        dx, dw = torch.autograd.grad(squares(*leaves, B), leaves)
    assert dx[3:].isfinite().all()
    assert dw[1:].isfinite().all()
    assert not dx[0].isfinite().any()


WRONG = {
    "descending": ([3, 2, 6], "found 2 for expert 1 after 3"),
    "too many": ([3, 3, 8], "at most the 7 rows there are; found 8 for expert 2"),
    "negative": ([-1, 3, 6], "found -1 for expert 0 after 0"),
}


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize(("ends", "says"), WRONG.values(), ids=WRONG)
def test_ends_out_of_order_are_an_index_error(ends, says, impl):
    with ops.use(f"grouped_linear={impl}"), pytest.raises(IndexError, match=says):
        ops.grouped_linear(X, W, torch.tensor(ends), B)


# -- norm_linear -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_eager_torch_s_norm_linear_is_the_norm_and_the_product(dtype):
    x, w, norm_w, norm_b, b = (t.to(dtype) for t in (X, W[0], made(4), made(1, 4)[0], B[0]))
    rms = ops.linear(ops.rms_norm(x, norm_w), w, b)
    assert torch.equal(ops.norm_linear(x, w, norm_w, b=b), rms)
    layer = ops.linear(ops.layer_norm(x, norm_w, norm_b), w, b)
    assert torch.equal(ops.norm_linear(x, w, norm_w, norm_b, b, kind="layer", eps=1e-5), layer)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_an_rms_norm_has_no_bias_also_where_one_was_served_before(impl):
    with ops.use(f"norm_linear={impl}"):
        ops.norm_linear(X, W[0])
        with pytest.raises(OpArgumentError, match="norm_b must be None where kind is 'rms'"):
            ops.norm_linear(X, W[0], None, made(4))
