"""Threads that share the keys of one sequence: attention has the bits it has on one thread."""

import sys

import pytest
import torch
from instruction_sets import DTYPES, ISAS, run, same_bits

from accel import ops
from accel_cpu.builders import TransformerBuilder

pytestmark = pytest.mark.usefixtures("_native")

NATIVE = "attention=accel_cpu.native"
KEYS = 8300  # 129 blocks and a part: more than wait for each other
KV_HEADS = 3
# Queries, and heads of q to one of k: up to eight rows beside a head of k are few.
ROWS = ((1, 1), (1, 4), (1, 7), (2, 4), (5, 1))
OPTIONS = {
    "plain": {},
    "not causal": {"causal": False},
    "mask": {"mask": torch.randn(1, 1, 1, KEYS, generator=torch.Generator().manual_seed(1))},
    "window": {"window": 600},
    "short window": {"window": 70},
    "window to both sides": {"window": 300, "causal": False},
    "softcap": {"softcap": 3.0},
    "dropout": {"dropout": 0.3, "seed": torch.tensor(5)},
}


def arguments(queries, group, dtype, spans=1, d=40, e=24):
    """Sequences whose scores differ by about a dozen, so that the largest one keeps changing."""
    generator = torch.Generator().manual_seed(queries + group)
    q, k, v = (
        torch.randn(shape, generator=generator)
        for shape in ((spans * queries, group * KV_HEADS, d), (spans * KEYS, KV_HEADS, d),
                      (spans * KEYS, KV_HEADS, e))
    )  # fmt: skip
    table = [[i * queries, queries, i * KEYS, KEYS] for i in range(spans)]
    return (q * 3).to(dtype), k.to(dtype), v.to(dtype), torch.tensor(table)


def on(threads, attention, *args, **options):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return attention(*args, **options)
    finally:
        torch.set_num_threads(before)


def assert_threads_change_no_bit(attention, args, **options):
    alone = on(1, attention, *args, **options)
    assert alone.isfinite().all()
    for threads in (2, 3, 20):
        assert same_bits(on(threads, attention, *args, **options), alone)


@pytest.mark.parametrize("asked", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("queries", "group"), ROWS)
def test_threads_change_no_bit(queries, group, asked):
    assert_threads_change_no_bit(ops.attention, arguments(queries, group, torch.float32), **asked)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_every_dtype_and_beside_another_sequence(dtype):
    for spans in (1, 2):
        assert_threads_change_no_bit(ops.attention, arguments(1, 4, dtype, spans))


@pytest.mark.parametrize("hidden", ["first", "all"])
def test_keys_that_weigh_nothing(hidden):
    """Whole blocks of them, before others or alone."""
    q, k, v, spans = arguments(1, 4, torch.float32)
    mask = torch.zeros(1, 1, 1, KEYS)
    mask[..., : 700 if hidden == "first" else None] = -torch.inf
    assert_threads_change_no_bit(ops.attention, (q, k, v, spans, mask))


def test_a_sequence_may_be_longer_or_shorter_than_the_last():
    """What threads leave for each other is as large as this call's."""
    q, k, v, _ = arguments(1, 4, torch.float32)
    for length in (KEYS, 520, 800, KEYS):
        spans = torch.tensor([[0, 1, 0, length]])
        assert_threads_change_no_bit(ops.attention, (q, k, v, spans))


@pytest.mark.parametrize("isa", ISAS)
def test_on_every_instruction_set(isa):
    assert run(__file__, isa) == [isa, "the same bits"]


def on_this_instruction_set():
    builder = TransformerBuilder()
    (impl,) = (impl for impl in builder.impls if impl.op == "attention")
    builder.load(impl)
    print(torch.ops.accel_cpu_kernels.isa())
    attention = torch.ops.accel_cpu_kernels.attention_native
    for (queries, group), dtype in zip(ROWS, 2 * DTYPES):
        assert_threads_change_no_bit(attention, arguments(queries, group, dtype))
    print("the same bits")


if __name__ == "__main__":
    assert len(sys.argv) == 2
    on_this_instruction_set()
