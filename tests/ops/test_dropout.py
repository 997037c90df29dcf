"""dropout_add: the bits are SplitMix64's, a row's own, the same in the backward, and fair."""

import math

import pytest
import torch
from agreement import assert_agree
from torch.func import grad, vmap

from accel import ops, testing
from accel.contracts import DROPOUT_ADD
from accel.contracts.random import kept
from accel.torch_impls import elementwise

pytestmark = pytest.mark.usefixtures("torch_serves")

F64 = torch.float64
SEED = torch.tensor(2**61 + 7)
SEEDS = [0, 1, -1, 2**63 - 1, -(2**63)]
FAR = 5  # standard deviations: one honest test in two million fails, and seeds are fixed


def drawn(*shape, seed=0):
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def rows_of(count):
    return torch.arange(count)


# -- the bits ----------------------------------------------------------------------------------


class SplitMix64:
    """As published: Steele, Lea and Flood 2014, in whole numbers of 64 bits."""

    def __init__(self, state):
        self.state = state % 2**64

    @staticmethod
    def mixed(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        return self.mixed(self.state)


def kept_by_whole_numbers(seed, row, columns, p):
    of_row = SplitMix64.mixed(seed % 2**64) + row * 0x9E3779B97F4A7C15
    stream, bits = SplitMix64(SplitMix64.mixed(of_row % 2**64)), []
    while len(bits) < columns:
        word = stream.next()
        bits += [word % 2**32, word >> 32]
    return [b >= round(p * 2**32) for b in bits[:columns]]


def test_the_generator_of_this_test_is_splitmix64():
    """The outputs that other implementations publish for the seed 1234567."""
    stream = SplitMix64(1234567)
    assert [stream.next() for _ in range(3)] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [0.0, 2**-32, 0.1, 0.5, 1 - 2**-32, 1.0])
def test_bits_are_those_of_splitmix64(seed, p):
    rows = [0, 1, 2**32 + 5, 2**62, -3]
    found = kept(torch.tensor(seed), torch.tensor(rows), 7, p)
    assert found.tolist() == [kept_by_whole_numbers(seed, row, 7, p) for row in rows]


@pytest.mark.parametrize("columns", [0, 1, 2, 33])
def test_rows_may_have_any_shape_and_width(columns):
    flat = kept(SEED, rows_of(6), columns, 0.5)
    assert flat.shape == (6, columns)
    assert torch.equal(kept(SEED, rows_of(6).view(2, 3), columns, 0.5), flat.view(2, 3, columns))
    assert torch.equal(kept(SEED, torch.tensor(4), columns, 0.5), flat[4])


def test_a_wider_row_begins_like_a_narrower_one():
    wide = kept(SEED, rows_of(5), 64, 0.5)
    for columns in (1, 2, 17, 63):
        assert torch.equal(kept(SEED, rows_of(5), columns, 0.5), wide[:, :columns])


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1, 200_000), (200_000, 1), (447, 447)], ids=str)
def test_the_fraction_that_is_kept_is_binomial(p, shape):
    rows, columns = shape
    left = kept(SEED, rows_of(rows), columns, p).sum().item()
    count = rows * columns
    assert abs(left - count * (1 - p)) < FAR * math.sqrt(count * p * (1 - p))


def test_neighbours_are_not_correlated():
    """Columns beside each other, of one word and of two, rows, seeds, and rows with seeds."""
    bits = kept(SEED, rows_of(600), 600, 0.5)
    other = kept(SEED + 1, rows_of(600), 600, 0.5)
    pairs = {
        "columns of a word": (bits[:, 0::2], bits[:, 1::2]),
        "columns of two words": (bits[:, 1:-1:2], bits[:, 2::2]),
        "rows": (bits[:-1], bits[1:]),
        "seeds": (bits, other),
        "the next row of a seed and the row of the next": (bits[1:], other[:-1]),
    }
    for what, (one, two) in pairs.items():
        agreeing, count = (one == two).sum().item(), one.numel()
        assert abs(agreeing - count / 2) < FAR * math.sqrt(count) / 2, what


# -- the op ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [DROPOUT_ADD.reference, elementwise.dropout_add])
def test_a_row_that_keeps_its_number_keeps_its_bits(kernel):
    x, numbers = drawn(9, 33), 1000 + rows_of(9)
    whole = kernel(x, None, None, SEED, numbers, 0.4)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kernel(x[order], None, None, SEED, numbers[order], 0.4), whole[order])
    for i in range(9):
        assert torch.equal(kernel(x[i], None, None, SEED, numbers[i], 0.4), whole[i])


def test_rows_are_numbered_by_their_places_counted_through():
    x = drawn(2, 3, 16)
    numbered = ops.dropout_add(x, None, None, SEED, rows_of(6).view(2, 3), p=0.5)
    assert torch.equal(ops.dropout_add(x, None, None, SEED, p=0.5), numbered)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("numbers", [True, False])
def test_chunks_do_not_show(monkeypatch, dtype, numbers):
    x, residual, b = (t.to(dtype) for t in (drawn(5, 3, 17), drawn(5, 3, 17, seed=1), drawn(17)))
    rows = 7 * rows_of(15).view(5, 3) if numbers else None
    for p in (0.0, 0.3):
        whole = DROPOUT_ADD.reference(x, residual, b, SEED, rows, p)
        for chunk in (1, 2 * 17, 7 * 17 + 1):
            monkeypatch.setattr(elementwise, "PART", chunk)
            assert torch.equal(elementwise.dropout_add(x, residual, b, SEED, rows, p), whole)
        alone = elementwise.dropout_add(x.mT, None, None, SEED, None, p)
        assert torch.equal(alone, DROPOUT_ADD.reference(x.mT, None, None, SEED, None, p))


def test_nothing_or_everything_may_be_dropped():
    x, residual, b = drawn(4, 9), drawn(4, 9, seed=1), drawn(9, seed=2)
    torch.testing.assert_close(ops.dropout_add(x, residual, b), residual + (x + b))
    assert torch.equal(ops.dropout_add(x, residual, b, SEED, p=1.0), residual)


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_without_dropout_it_is_a_sum_rounded_once(dtype, residual, bias):
    x = drawn(40, 33).to(dtype)
    beside = drawn(40, 33, seed=1).to(dtype) if residual else None
    b = drawn(33, seed=2).to(dtype) if bias else None
    total = sum(t.double() for t in (x, beside, b) if t is not None)
    for kernel in (DROPOUT_ADD.reference, elementwise.dropout_add):
        y = kernel(x, beside, b, None, None, 0.0)
        assert y.data_ptr() != x.data_ptr()
        assert_agree(y, total.to(dtype), operations=3)
        if dtype in (torch.bfloat16, torch.float16):  # as the fp32 sum, which is all but exact
            assert (y != total.to(dtype)).float().mean() < 1e-3


def test_what_is_dropped_is_nothing_whatever_it_was():
    x = torch.full((8, 8), torch.nan).requires_grad_()
    y = ops.dropout_add(x, None, None, SEED, p=0.5)
    left = kept(SEED, rows_of(8), 8, 0.5)
    assert torch.equal(y.isnan(), left)
    assert not y[~left].any()
    (dx,) = torch.autograd.grad(y, x, torch.full_like(y, torch.inf))
    assert torch.equal(dx == torch.inf, left)
    assert not dx[~left].any()


def test_the_expectation_is_that_without_dropout():
    x, b = drawn(16), drawn(16, seed=1)
    draws, p = 40_000, 0.3
    y = ops.dropout_add(x.expand(draws, 16), None, b, SEED, p=p)
    spread = (x + b).abs() * math.sqrt(p / (1 - p) / draws)
    assert ((y.mean(0) - (x + b)).abs() < FAR * spread).all()


def test_the_gradient_drops_what_the_result_drops():
    x, b = drawn(6, 21).requires_grad_(), drawn(21).requires_grad_()
    y = ops.dropout_add(x, drawn(6, 21), b, SEED, p=0.4)
    dx, db = torch.autograd.grad(y.sum(), (x, b))
    left = kept(SEED, rows_of(6), 21, 0.4).double()
    torch.testing.assert_close(dx, left / 0.6)
    torch.testing.assert_close(db, left.sum(0) / 0.6)


def test_first_and_second_derivatives_are_right():
    leaves = [t.requires_grad_() for t in (drawn(3, 4), drawn(3, 4, seed=1), drawn(4))]
    function = lambda x, r, b: ops.dropout_add(x.sin(), r.sin(), b.sin(), SEED, p=0.4)  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


# -- what watches ------------------------------------------------------------------------------


def test_a_compiled_graph_takes_any_seed_and_drops_the_same():
    torch.compiler.reset()
    function = lambda x, seed: ops.dropout_add(x, x.cos(), None, seed, p=0.3)  # noqa: E731
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    x = drawn(5, 9).requires_grad_()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (SEED, SEED + 1):
            got, want = compiled(x, seed), function(x, seed)
            assert torch.equal(got, want)
            gradients = [torch.autograd.grad(y.sin().sum(), x) for y in (got, want)]
            torch.testing.assert_close(*gradients)


def test_another_p_compiles():
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, p: ops.dropout_add(x, None, None, SEED, p=p), backend="aot_eager", fullgraph=True
    )
    x = drawn(5, 9).requires_grad_()
    for p in (0.0, 0.3, 0.5, 1.0):
        y = compiled(x, p)
        assert torch.equal(y, ops.dropout_add(x, None, None, SEED, p=p))
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(dx != 0, kept(SEED, rows_of(5), 9, p))


def test_vmap_is_a_loop_over_inputs_and_over_seeds():
    x, seeds = drawn(4, 3, 8), torch.arange(4)
    function = lambda x, seed: ops.dropout_add(x, None, None, seed, p=0.5)  # noqa: E731
    one_seed = torch.stack([function(one, SEED) for one in x])
    assert torch.equal(vmap(function, (0, None))(x, SEED), one_seed)
    seeded = torch.stack([function(one, seed) for one, seed in zip(x, seeds)])
    assert torch.equal(vmap(function)(x, seeds), seeded)
    gradients = vmap(grad(lambda x, seed: function(x, seed).sum()))(x, seeds)
    assert torch.equal(gradients != 0, seeded != 0)


@pytest.mark.parametrize("bad", [None, "0.1", 1j])
def test_p_is_a_number(bad):
    with pytest.raises(TypeError, match="p must be a number"):
        ops.dropout_add(torch.ones(2, 3), p=bad)


def test_a_seed_forgotten_after_a_good_call_is_refused_in_the_same_words():
    x = torch.ones(2, 3, device=testing.HOST)
    ops.dropout_add(x, None, None, SEED, p=0.25)
    with pytest.raises(ValueError, match=r"p = 0\.25 needs a seed"):
        ops.dropout_add(x, p=0.25)
