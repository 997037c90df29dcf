"""quantized_linear: what quantising keeps, how values lie, and the gradient of scales."""

import pytest
import torch
from agreement import assert_agree, assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from accel import ops, testing
from accel.contracts import QUANTIZED_LINEAR
from accel.contracts.quantized_linear import dequantize, quantize
from accel.errors import OpArgumentError

F32, F64 = torch.float32, torch.float64

pytestmark = pytest.mark.usefixtures("torch_serves")

each_bits = pytest.mark.parametrize("bits", [8, 4])


def made(*shape, dtype=F32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


# -- quantize and dequantize -------------------------------------------------------------------


@given(
    bits=st.sampled_from([8, 4]),
    n=st.integers(0, 4),
    groups=st.integers(1, 4),
    half=st.integers(0, 5),
    whole=st.booleans(),
    power=st.integers(-30, 30),
    dtype=st.sampled_from([F32, F64, torch.bfloat16]),
)
@settings(deadline=None)
def test_no_value_is_off_by_more_than_half_its_scale(bits, n, groups, half, whole, power, dtype):
    size = 2 * half
    w = (made(n, groups * size, dtype=F64) * 2.0**power).to(dtype)
    q, scales = quantize(w, bits, None if whole or not size else size)
    assert q.dtype is {8: torch.int8, 4: torch.uint8}[bits]
    assert scales.dtype is torch.promote_types(dtype, F32)
    back = dequantize(q, scales, bits)
    assert back.shape == w.shape
    room = scales.double().repeat_interleave(max(w.shape[1] // scales.shape[1], 1), 1)
    error = (w.double() - back.double()).abs()
    eps = torch.finfo(scales.dtype).eps
    assert bool((error <= room[:, : w.shape[1]] * (0.5 + 256 * eps)).all())


@each_bits
def test_the_largest_of_a_group_is_exact_and_makes_its_scale(bits):
    largest = {8: 127, 4: 7}[bits]
    w = torch.tensor([[1.0, -2.0, 0.5, 0.25], [0.0, 0.0, -3.0, 0.0]])
    q, scales = quantize(w, bits, 2)
    assert torch.equal(scales, torch.tensor([[2.0, 0.5], [largest, 3.0]]) / largest)
    back = dequantize(q, scales, bits)
    assert back[0, 1] == -2
    assert back[1].tolist() == [0, 0, -3, 0]


@each_bits
def test_quantising_what_was_quantised_changes_nothing(bits):
    q, scales = quantize(made(5, 12), bits, 4)
    again, same = quantize(dequantize(q, scales, bits), bits, 4)
    assert torch.equal(again, q)
    assert_agree(same, scales, operations=3)


@pytest.mark.parametrize("tiny", [0.0, 1e-45, 1e-40])
@each_bits
def test_a_group_of_nothing_is_finite(bits, tiny):
    q, scales = quantize(torch.full((2, 4), tiny), bits)
    assert scales.tolist() == [[1.0], [1.0]]
    assert not dequantize(q, scales, bits).any()


def test_the_first_value_of_a_byte_is_its_low_half():
    w = torch.tensor([[0x2F, 0x80]], dtype=torch.uint8)
    assert dequantize(w, torch.ones(1, 1), 4).tolist() == [[7.0, -6.0, -8.0, 0.0]]


BAD_WEIGHTS = {
    "odd columns": ((made(3, 5), 4), "even number of columns"),
    "group": ((made(3, 6), 8, 4), "group_size must divide w's 6 columns; found 4"),
    "negative group": ((made(3, 6), 8, -2), "group_size must divide"),
    "no group": ((made(3, 6), 8, 0), "group_size must divide"),
    "integers": ((made(3, 6).int(),), "w must be one of"),
    "rank": ((made(6),), r"w must be \[out, in\]"),
    "bits": ((made(3, 6), 2), "bits must be 8 or 4; found 2"),
    "infinite": ((torch.full((1, 2), torch.inf),), "w must be finite"),
    "NaN": ((torch.full((1, 2), torch.nan),), "w must be finite"),
}


@pytest.mark.parametrize(("args", "says"), BAD_WEIGHTS.values(), ids=BAD_WEIGHTS)
def test_what_cannot_be_quantised_is_refused(args, says):
    with pytest.raises(OpArgumentError, match=says):
        quantize(*args)


# -- the op ------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [None, 6])
@each_bits
def test_a_quantised_weight_is_used_as_the_one_it_stands_for(bits, group_size):
    x, w, b = made(5, 12, dtype=F64), made(3, 12, dtype=F64), made(3, dtype=F64)
    q, scales = quantize(w, bits, group_size)
    want = ops.linear(x, dequantize(q, scales, bits), b, act="silu")
    got = ops.quantized_linear(x, q, scales, b, bits=bits, act="silu")
    assert_agree(got, want)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_bytes_of_the_other_kind_are_refused_when_both_were_served_before(impl):
    x = made(5, 12)
    eight, four = quantize(made(3, 12)), quantize(made(3, 12), 4)
    with ops.use(f"quantized_linear={impl}"):
        for (q, scales), bits in ((eight, 8), (four, 4)):
            ops.quantized_linear(x, q, scales, bits=bits)
        for (q, scales), bits, dtype in ((eight, 4, "uint8"), (four, 8, "int8")):
            with pytest.raises(OpArgumentError, match=f"w of {bits} bits must be {dtype}"):
                ops.quantized_linear(x, q, scales, bits=bits)


@pytest.mark.parametrize("act", [None, "gelu"])
@each_bits
def test_first_and_second_derivatives_are_right(bits, act):
    q, scales = quantize(made(3, 6, dtype=F64), bits, 3)
    leaves = [t.requires_grad_() for t in (made(2, 6, dtype=F64), scales, made(3, dtype=F64))]
    function = lambda x, s, b: ops.quantized_linear(x, q, s, b, bits=bits, act=act)  # noqa: E731
    assert_gradients(function, leaves)


def test_only_what_needs_a_gradient_gets_one():
    q, scales = quantize(made(3, 6))
    x = made(2, 6).requires_grad_()
    ops.quantized_linear(x, q, scales).sum().backward()
    assert scales.grad is None
    torch.testing.assert_close(x.grad, dequantize(q, scales).sum(0).expand(2, 6))


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_lowers_the_product_and_leaves_the_scales(compiled):
    x, (q, scales) = made(5, 12), quantize(made(3, 12))

    def function(x, q, scales):
        with torch.autocast(testing.HOST, dtype=torch.bfloat16):
            return ops.quantized_linear(x, q, scales)

    call = torch.compile(function, backend="aot_eager", fullgraph=True) if compiled else function
    assert torch.equal(call(x, q, scales), ops.quantized_linear(x.bfloat16(), q, scales))


def test_a_call_counts_the_bytes_of_the_weight_as_they_lie():
    q, scales = quantize(made(4, 8), 4, 2)
    cost = QUANTIZED_LINEAR.cost(made(3, 8), q, scales, None, 4, None, None)
    assert (cost.flops, cost.bytes) == (2 * 3 * 4 * 8, 4 * (3 * 8 + 3 * 4) + 16 + 4 * 16)
