"""layer_norm, rotary, attention and embedding: what is true of them and of no other op."""

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree

from accel import ops, testing, torch_impls
from accel.contracts import ATTENTION, CONTRACTS, EMBEDDING, LAYER_NORM, ROTARY
from accel.testing import HOST

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
HERE = torch.device(HOST)


def drawn(*shape, dtype=F64, seed=0):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def kernels(op):
    return {"reference": CONTRACTS[op].reference, "torch": torch_impls._KERNELS[op]}


def of(contract, implementation):
    """An implementation with the schema's defaults."""
    kernel = kernels(contract.name)[implementation]
    return lambda *args, **kwargs: kernel(*contract.bind(args, kwargs))


each_implementation = pytest.mark.parametrize("implementation", ["reference", "torch"])


def gradients(contract, args, grad):
    """(the contract's gradients, those of autograd through its reference), of floats."""
    floats = [isinstance(a, torch.Tensor) and a.is_floating_point() for a in args]
    leaves = [a.detach().requires_grad_() if is_float else a for a, is_float in zip(args, floats)]
    wanted = [leaf for leaf, is_float in zip(leaves, floats) if is_float]
    y = contract.reference(*leaves)
    y = y + 0 * wanted[0].sum()  # of no spans, y is 0 and knows of no leaf
    by_autograd = torch.autograd.grad(y, wanted, grad, materialize_grads=True)
    found = contract.backward(grad, floats, *args)
    assert [one is not None for one in found] == floats
    return [one for one in found if one is not None], by_autograd


SAMPLES = [(c, s) for c in (LAYER_NORM, ROTARY, ATTENTION, EMBEDDING) for s in c.samples()]


@pytest.mark.parametrize(
    ("contract", "sample"), SAMPLES, ids=[f"{c.name}-{s.name}" for c, s in SAMPLES]
)
def test_gradients_are_those_of_the_reference(contract, sample):
    args = sample.make(F64, HERE)
    grad = drawn(*contract.fake(*args).shape)
    for found, wanted in zip(*gradients(contract, args, grad), strict=True):
        assert_agree(found, wanted)


@pytest.mark.parametrize("bad", [1, None, "yes"])
def test_causal_and_interleaved_are_flags(bad):
    attended = (*(drawn(3, 2, 4) for _ in "qkv"), torch.zeros(0, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="causal must be True or False"):
        ATTENTION.check(*ATTENTION.bind(attended, {"causal": bad}))
    with pytest.raises(TypeError, match="interleaved must be True or False"):
        ROTARY.check(drawn(3, 2, 4), drawn(3, 2), drawn(3, 2), bad)
    with pytest.raises(TypeError, match="scale must be a number"):
        ATTENTION.check(*ATTENTION.bind(attended, {"scale": "1"}))


# -- layer_norm --------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_is_torch_s_with_its_gradients(weight, bias):
    x = drawn(3, 4, 7)
    w, b = drawn(7, seed=1) if weight else None, drawn(7, seed=2) if bias else None
    leaves = [t.requires_grad_() for t in (x, w, b) if t is not None]
    want = F.layer_norm(x, (7,), w, b, 1e-3)
    torch.testing.assert_close(LAYER_NORM.reference(x, w, b, 1e-3), want)
    grad = drawn(3, 4, 7, seed=3)
    found = LAYER_NORM.backward(grad, (True, weight, bias), x, w, b, 1e-3)
    found = [g for g in found if g is not None]
    torch.testing.assert_close(found, list(torch.autograd.grad(want, leaves, grad)))


@each_implementation
def test_a_large_mean_costs_layer_norm_no_more_than_its_own_digits(implementation):
    x = drawn(5, 64, dtype=F32)
    got = of(LAYER_NORM, implementation)(x + 4096)
    # Of 4096 the deviations keep 2**-11 of themselves; a difference of squares keeps nothing.
    want = F.layer_norm((x + 4096).double(), (64,)).float()
    assert_agree(got, want, operations=4096)  # of 1, as often as 4096 is larger


@each_implementation
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("width", [3, 64, 101, 4099])
def test_a_row_of_layer_norm_does_not_depend_on_its_neighbours(implementation, dtype, width):
    x, w, b = drawn(33, width, dtype=dtype), drawn(width, dtype=dtype), drawn(width, dtype=dtype)
    norm = of(LAYER_NORM, implementation)
    alone = torch.cat([norm(row.clone(), w, b) for row in x.split(1)])
    for rows in (2, 17, 33):
        assert torch.equal(norm(x[:rows], w, b), alone[:rows])


# -- rotary ------------------------------------------------------------------------------------


def test_both_implementations_of_rotary_agree_bit_for_bit():
    for sample in ROTARY.samples():
        for dtype in (F64, F32, BF16, F16):
            args = sample.make(dtype, HERE)
            one, two = (kernel(*args) for kernel in kernels("rotary").values())
            assert torch.equal(one, two), sample.name


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_turns_pairs_and_leaves_the_rest(interleaved):
    x = torch.arange(1.0, 6.0).reshape(1, 1, 5)
    quarter = ROTARY.reference(x, torch.zeros(1, 2), torch.ones(1, 2), interleaved)
    want = [-2, 1, -4, 3, 5] if interleaved else [-3, -4, 1, 2, 5]
    assert quarter.flatten().tolist() == want


@pytest.mark.usefixtures("torch_serves")
@pytest.mark.parametrize("interleaved", [True, False])
def test_first_and_second_derivatives_of_rotary_are_right(interleaved):
    leaves = [t.requires_grad_() for t in (drawn(2, 3, 5), drawn(2, 2), drawn(2, 2, seed=1))]
    function = lambda *t: ops.rotary(*t, interleaved=interleaved)  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.usefixtures("torch_serves")
@pytest.mark.parametrize("op", ["rotary", "embedding"])
def test_autocast_leaves_arguments_as_they_are(op, call):
    args = next(iter(CONTRACTS[op].samples())).make(F32, HERE)
    with torch.autocast(testing.HOST, dtype=BF16):
        got = call(op, args)
    assert got.dtype is F32
    assert torch.equal(got, call(op, args))


# -- embedding ---------------------------------------------------------------------------------


@each_implementation
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("bad", [-1, 5])
def test_an_id_out_of_range_is_an_error(implementation, dtype, bad):
    with pytest.raises(IndexError):
        of(EMBEDDING, implementation)(torch.tensor([0, bad], dtype=dtype), drawn(5, 3))


def test_the_gradient_of_a_row_used_often_is_summed_in_fp32():
    ids, w = torch.zeros(1000, dtype=torch.int64), drawn(2, 3, dtype=BF16)
    grad = torch.ones(1000, 3, dtype=BF16)
    _, dw = EMBEDDING.backward(grad, (False, True), ids, w)
    assert dw.dtype is BF16
    assert dw.tolist() == [[1000.0] * 3, [0.0] * 3]  # 256 if each sum were rounded


@pytest.mark.usefixtures("torch_serves")
def test_first_and_second_derivatives_of_embedding_are_right():
    ids, w = torch.tensor([[1, 1], [3, 0]]), drawn(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: ops.embedding(ids, w), w)
    assert torch.autograd.gradgradcheck(lambda w: ops.embedding(ids, w).pow(3), w)
