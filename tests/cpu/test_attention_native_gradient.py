"""accel_cpu.native attention: gradients of more than one block of rows and keys."""

import pytest
import torch
from instruction_sets import DTYPES, randn, same_bits

from accel import ops
from accel.contracts import CONTRACTS
from accel_conformance.case import Evidence
from accel_conformance.suite.gradients import check
from accel_conformance.target import Target
from accel_cpu.builders import TransformerBuilder

ROWS, KEYS = 150, 210
SPANS = torch.tensor([[0, 100, 0, 130], [110, 40, 130, 80]])
SHARED = torch.tensor([[0, 100, 0, 130], [110, 40, 70, 140]])
NAN = float("nan")


def hiding(*keys):
    """A mask that hides these keys, and from the fifth query of a span on all."""
    mask = randn(1, 1, 100, 140, seed=5)
    mask[..., list(keys)] = mask[:, :, 4] = -torch.inf
    return mask


OPTIONS = {
    "plain": {},
    "two ways": {"causal": False},
    "window": {"window": 70},
    "short window, two ways": {"window": 9, "causal": False},
    "mask": {"mask": hiding(0, 1, *range(64, 128))},
    "slopes": {"slopes": torch.linspace(0.01, 1, 8)},
    "softcap": {"softcap": 2.0},
    "dropout": {"dropout": 0.4, "seed": torch.tensor(3)},
}
OPTIONS["everything"] = {k: v for asked in OPTIONS.values() for k, v in asked.items()} | {
    "window": 90
}
each_option = pytest.mark.parametrize("asked", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture(autouse=True)
def _served():
    with ops.use("attention=accel_cpu.native"):
        yield


def drawn(dtype=torch.float32, group=4, d=72, e=40):
    """q, k and v: one head takes more than one square of 64, and not all of the second."""
    q, k, v = randn(ROWS, 2 * group, d), randn(KEYS, 2, d, seed=1), randn(KEYS, 2, e, seed=2)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def gradients(q, k, v, spans, **asked):
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    y = ops.attention(*leaves, spans, **asked)
    return torch.autograd.grad(y, leaves, randn(*y.shape, seed=3).to(y.dtype))


@each_option
def test_they_are_right(asked):
    builder = TransformerBuilder()
    impl = next(impl for impl in builder.impls if impl.op == "attention")
    target = Target(CONTRACTS["attention"], impl, builder, torch.device("cpu"))
    usual = {"mask": None, "slopes": None, "seed": None, "causal": True, "scale": None,
             "window": None, "softcap": None, "dropout": 0.0}  # fmt: skip
    for spans in (SPANS, SHARED):
        with target.alone():
            seen = Evidence()
            check(target, "long", (*drawn(), spans, *(usual | asked).values()), seen)
        assert not seen.broken, [*map(str, seen.broken)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spans", [SPANS, SHARED], ids=["apart", "sharing keys"])
def test_threads_change_no_bit(spans, dtype):
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        asked = OPTIONS["everything"] | {"mask": OPTIONS["everything"]["mask"].to(dtype)}
        found.append(gradients(*drawn(dtype), spans, **asked))
    assert all(map(same_bits, *found))


def test_one_sequence_s_one_head_of_keys_is_shared_by_the_threads_to_the_same_bits():
    q, k, v = (randn(700, heads, 24, seed=heads) for heads in (3, 1, 1))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(gradients(q, k, v, torch.tensor([[0, 700, 0, 700]]), window=400))
    assert all(map(same_bits, found[0], found[1]))
    assert all(map(same_bits, found[0], found[2]))


@pytest.mark.parametrize("name", ["plain", "window", "slopes", "softcap"])
def test_a_query_s_gradient_is_that_of_its_decode_step(name):
    asked = OPTIONS[name]
    q, k, v = drawn()
    whole = gradients(q, k, v, torch.tensor([[0, 150, 0, 150]]), **asked)[0]
    steps = torch.tensor([[i, 1, 0, i + 1] for i in range(150)])
    assert same_bits(gradients(q, k, v, steps, **asked)[0], whole)


def test_each_gradient_is_the_same_without_the_others():
    q, k, v = drawn()
    want = gradients(q, k, v, SPANS)
    for i in range(3):
        operands = [t.detach().requires_grad_(i == j) for j, t in enumerate((q, k, v))]
        y = ops.attention(*operands, SPANS)
        found = torch.autograd.grad(y, operands[i], randn(*y.shape, seed=3))[0]
        assert same_bits(found, want[i])


def test_queries_that_see_nothing_leave_no_trace():
    """More queries than keys, between spans, or hidden from all: whatever they hold."""
    q, k, v = drawn()
    mask = hiding()
    spans = torch.tensor([[0, 100, 0, 60], [110, 40, 60, 80]])
    blind = [*range(40), *range(100, 110), 114]
    want = gradients(q, k, v, spans, mask=mask[:, :, :, :80])
    q[blind] = NAN
    found = gradients(q, k, v, spans, mask=mask[:, :, :, :80])
    assert not found[0][blind].any()
    assert all(map(same_bits, found, want))


def test_what_is_kept_is_a_number_a_row_beside_the_arguments_and_the_result():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        operands = [t.requires_grad_() for t in drawn()]
        y = ops.attention(*operands, SPANS)
    known = {t.data_ptr() for t in (*operands, SPANS, y)}
    assert sum(t.numel() for t in kept if t.data_ptr() not in known) == ROWS * 8
