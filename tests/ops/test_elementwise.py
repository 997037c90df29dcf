"""bias_act, softmax and add_norm: what is true of them and of no other op."""

import math

import pytest
import torch
import torch.nn.functional as F

from accel import ops, testing
from accel.contracts import ADD_NORM, BIAS_ACT, SOFTMAX
from accel.contracts.activation import ACTIVATIONS
from accel.torch_impls import elementwise, linear, norm

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16

pytestmark = pytest.mark.usefixtures("torch_serves")
each_dtype = pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)


def drawn(*shape, dtype=F64, seed=0):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


# -- parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60,), (12, 5), (3, 4, 5), (2, 3, 2, 5), (1, 1, 60)], ids=str)
@pytest.mark.parametrize("most", [1, 4, 5, 11, 20, 40, 60])
def test_parts_are_all_there_once_and_small(monkeypatch, shape, most):
    monkeypatch.setattr(elementwise, "PART", most)
    whole = torch.arange(60).reshape(shape)
    rows = torch.arange(60 // shape[-1]).reshape(shape[:-1])
    found = list(elementwise.parts(whole, rows, None))
    assert torch.cat([part.reshape(-1) for part, _, _ in found]).tolist() == list(range(60))
    for part, numbers, absent in found:
        assert part.numel() <= max(most, shape[-1])
        assert numbers.shape == part.shape[:-1]
        assert torch.equal(part[..., 0], numbers * shape[-1])
        assert absent is None


# -- bias_act ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("exact", "served"), [(False, "torch"), (True, "torch_composed")])
def test_where_rows_must_be_exact_the_composition_serves(exact, served):
    with ops.use(exact=exact):
        assert ops.explain("bias_act", device=testing.HOST, act="gelu").chosen.impl.id == served


@each_dtype
@pytest.mark.parametrize("act", [None, *ACTIVATIONS])
def test_a_value_does_not_depend_on_where_it_lies(monkeypatch, act, dtype):
    x, b = drawn(37, dtype=dtype), drawn(37, dtype=dtype, seed=1)
    one_by_one = torch.cat([BIAS_ACT.reference(x[i : i + 1], b[i : i + 1], act) for i in range(37)])
    for most in (5, 1 << 18):
        monkeypatch.setattr(elementwise, "PART", most)
        assert torch.equal(elementwise.bias_act_composed(x, b, act), one_by_one)
        rows = x.expand(7, 37)
        assert torch.equal(elementwise.bias_act_composed(rows, b, act), one_by_one.expand(7, 37))


@pytest.mark.parametrize("kernel", [elementwise.bias_act, elementwise.bias_act_composed])
def test_parts_do_not_show_in_bias_act(monkeypatch, kernel):
    x, b = drawn(4, 6, 16, dtype=BF16), drawn(16, dtype=BF16)
    whole = kernel(x, b, "silu")
    monkeypatch.setattr(elementwise, "PART", 3 * 16)
    assert torch.equal(kernel(x, b, "silu"), whole)
    assert torch.equal(kernel(x.transpose(0, 1), b, "silu"), whole.transpose(0, 1))


def test_a_half_precision_sum_is_not_rounded_before_its_activation():
    x, b = drawn(500, dtype=BF16), drawn(500, dtype=BF16, seed=1)
    want = F.gelu(x.float() + b.float()).to(BF16)
    assert torch.equal(elementwise.bias_act(x, b, "gelu"), want)
    assert not torch.equal(F.gelu(x + b), want)


# -- softmax -----------------------------------------------------------------------------------


@each_dtype
def test_softmax_is_torch_s_where_something_is_seen(dtype):
    x, mask = drawn(2, 5, 9, dtype=dtype), drawn(5, 9, dtype=dtype, seed=1)
    mask[:, 4:] = -math.inf
    want = torch.softmax(x.double() * 0.5 + mask.double(), -1)
    torch.testing.assert_close(ops.softmax(x, mask, scale=0.5), want.to(dtype))


def test_a_row_that_sees_nothing_is_zero_and_has_no_gradient():
    x, mask = drawn(3, 4).requires_grad_(), torch.zeros(3, 4, dtype=F64)
    mask[1] = -math.inf
    mask.requires_grad_()
    y = ops.softmax(x, mask)
    assert not y[1].any()
    torch.testing.assert_close(y[[0, 2]], x[[0, 2]].softmax(-1))
    dx, dmask = torch.autograd.grad(y.square().sum(), (x, mask), create_graph=True)
    assert not dx[1].any()
    assert not dmask[1].any()
    (ddx,) = torch.autograd.grad(dx.square().sum(), x)
    assert not ddx[1].any()
    assert ddx[[0, 2]].all()
    assert ddx.isfinite().all()


def test_what_is_not_a_number_is_not_taken_for_nothing_seen():
    hidden = torch.full((4,), -math.inf)
    hidden[2] = math.nan
    assert ops.softmax(hidden).isnan().all()


@each_dtype
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_rows_are_mended_where_values_are_read_and_where_not(monkeypatch, dtype, scale):
    x = drawn(4, 9, dtype=dtype)
    x[1], x[2, 3] = -math.inf, math.nan
    read = elementwise.softmax(x, None, scale)
    assert not read[1].any()
    assert read[2].isnan().all()
    seen = (x[[0, 3]].double() * scale).softmax(-1)
    torch.testing.assert_close(read[[0, 3]], seen.to(dtype))
    monkeypatch.setattr(elementwise, "in_host_memory", lambda tensor: False)
    torch.testing.assert_close(
        elementwise.softmax(x, None, scale), read, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda x, far: elementwise.softmax(x, far, 0.5),
        lambda x, far: elementwise.dropout_add(x, far, x[0], None, None, 0.0),
        lambda x, far: linear.lora_linear(x, x, x, far, None, 1.0, None),
        lambda x, far: linear.quantized_linear(
            x, x.to(torch.int8), far[:, :1], None, 8, None, None
        ),
    ],
    ids=["softmax", "dropout_add", "lora_linear", "quantized_linear"],
)
def test_nothing_is_added_in_place_from_another_device(call):
    x = torch.ones(4, 4)
    with pytest.raises(RuntimeError, match="move one of them"):
        call(x, x.to("meta"))


@pytest.mark.parametrize("shape", [(9,), (1,), (5, 1), (3, 1, 9), (3, 5, 9), (2, 1, 5, 1)], ids=str)
def test_a_mask_broadcasts_and_its_gradient_is_summed(monkeypatch, shape):
    x, mask = drawn(2, 3, 5, 9), drawn(*shape, seed=1).requires_grad_()
    expanded = mask.detach().expand(x.shape).clone().requires_grad_()
    y, want = ops.softmax(x, mask), ops.softmax(x, expanded)
    assert torch.equal(y, want)
    (dmask,) = torch.autograd.grad(y.sin().sum(), mask)
    (wide,) = torch.autograd.grad(want.sin().sum(), expanded)
    torch.testing.assert_close(dmask, wide.sum_to_size(shape))
    x, mask = x.bfloat16(), mask.detach().bfloat16()
    want = elementwise.softmax(x, mask, 0.5)
    for most in (9, 30, 100):
        monkeypatch.setattr(elementwise, "PART", most)
        assert torch.equal(elementwise.softmax(x, mask, 0.5), want)


def test_a_batch_of_inputs_has_one_mask():
    x, mask = drawn(4, 5, 9), drawn(5, 9, seed=1)
    looped = torch.stack([ops.softmax(one, mask) for one in x])
    assert torch.equal(torch.vmap(lambda one: ops.softmax(one, mask))(x), looped)


@pytest.mark.parametrize("bad", [None, "1", 1j])
def test_a_scale_is_a_number(bad):
    with pytest.raises(TypeError, match="scale must be a number"):
        SOFTMAX.check(drawn(2, 3), None, bad)


# -- add_norm ----------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("kernel", [ADD_NORM.reference, norm.add_norm])
def test_add_norm_is_an_addition_and_a_norm_bit_for_bit(kernel, dtype):
    x, residual, w, b = (drawn(*s, dtype=dtype) for s in ((7, 33), (7, 33), (33,), (33,)))
    own = kernel is norm.add_norm
    normed, total = kernel(x, residual.flip(0), w, None, "rms", 1e-5)
    assert torch.equal(total, x + residual.flip(0))
    with ops.use("*=torch" if own else "*=reference", exact=False):
        assert torch.equal(normed, ops.rms_norm(total, w, eps=1e-5))
        normed, total = kernel(x, residual, w, b, "layer", 1e-5)
        assert torch.equal(normed, ops.layer_norm(total, w, b, eps=1e-5))


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_first_and_second_derivatives_of_add_norm_are_right(kind):
    leaves = [t.requires_grad_() for t in (drawn(2, 3), drawn(2, 3, seed=1), drawn(3, seed=2))]
    b = drawn(3, seed=3) if kind == "layer" else None
    function = lambda x, r, w: ops.add_norm(x, r, w, b, kind=kind)  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("used", [0, 1])
def test_one_of_add_norm_s_results_may_go_unused(used):
    x, residual, w = (drawn(*s).requires_grad_() for s in ((4, 5), (4, 5), (5,)))
    total = x + residual
    plain = (F.rms_norm(total, (5,), w, 1e-5), total)[used]
    leaves = (x, residual, w) if used == 0 else (x, residual)
    want = torch.autograd.grad(plain.sin().sum(), leaves)
    got = torch.autograd.grad(ops.add_norm(x, residual, w)[used].sin().sum(), leaves)
    torch.testing.assert_close(got, want)


def test_a_bias_of_rms_is_refused_after_a_good_call_too():
    x = drawn(3, 8)
    ops.add_norm(x, x)
    with pytest.raises(ValueError, match="kind='rms' has no b"):
        ops.add_norm(x, x, None, x[0])
