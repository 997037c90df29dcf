"""accel_cpu.native logprob: the same bits from hidden rows as from their logits, and from a batch
as from its rows."""

import sys

import numpy as np
import pytest
import torch
from instruction_sets import DTYPES, ISAS, randn, run, same_bits

from accel import ops
from accel.contracts import CONTRACTS
from accel_conformance.measure import exact, shares

pytestmark = pytest.mark.usefixtures("_native")

NATIVE = "linear=accel_cpu.native;logprob=accel_cpu.native"
ROWS = (1, 2, 3, 5, 8, 16, 17, 33, 64)
FP32 = CONTRACTS["linear"].tolerance[torch.float32]
PLAIN, COLD = {}, {"temperature": 0.4}
ADJUSTED = {"scale": 1.7, "softcap": 3.0, "temperature": 0.8}
LOGITS = (1, 2, 7, 31, 64, 1000, 1025, 50257)
INF = float("inf")


def draw_ids(m, v):
    return torch.randint(v, (m,), generator=torch.Generator().manual_seed(5))


def head(v, h, dtype, by_columns=False):
    """The weight and bias of v logits of h hidden elements."""
    w = (randn(v, h, seed=1) / h**0.5).to(dtype)
    return w.t().contiguous().t() if by_columns else w, randn(v, dtype=dtype, seed=2)


def expected(z, ids, scale=1.0, softcap=None, temperature=1.0):
    z = z * scale
    if softcap is not None:
        z = softcap * np.tanh(z / softcap)
    z = z / temperature
    largest = z.max(-1, keepdims=True)
    log_sum = largest + np.log(np.exp(z - largest).sum(-1, keepdims=True))
    logs = z - log_sum
    entropy = -(np.exp(logs) * np.where(logs == -INF, 0, logs)).sum(-1)
    return np.take_along_axis(logs, ids.numpy()[:, None], 1)[:, 0], entropy


def assert_right(found, z, ids, **adjustment):
    for result, want in zip(found, expected(z, ids, **adjustment), strict=True):
        used = shares(result, want, FP32)
        assert used.within, (str(used), z.shape, adjustment)


def rows_differing(x, ids, *head, **adjustment):
    """How many rows of the first M differ from the row alone, over all M."""

    def call(rows):
        return torch.stack(ops.logprob(x[rows], ids[rows], *head, **adjustment), 1)

    alone = torch.cat([call(slice(i, i + 1)) for i in range(len(x))])
    batches = [call(slice(m)) for m in ROWS]
    return sum(not same_bits(y[i], alone[i]) for y in batches for i in range(len(y)))


def same_from_logits(x, ids, w, b, **adjustment):
    z = ops.linear(x, w, b, out_dtype=torch.float32)
    of_logits = ops.logprob(z, ids, **adjustment)
    return all(map(same_bits, ops.logprob(x, ids, w, b, **adjustment), of_logits))


@pytest.mark.parametrize("adjustment", [PLAIN, COLD, ADJUSTED], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_of_logits_it_is_right(dtype, adjustment):
    for v in LOGITS:
        for m in (1, 5):
            z, ids = randn(m, v, dtype=dtype), draw_ids(m, v)
            found = ops.logprob(z, ids, **adjustment)
            assert_right(found, exact(z), ids, **adjustment)


@pytest.mark.parametrize("adjustment", [PLAIN, ADJUSTED], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_of_hidden_rows_it_is_right(dtype, adjustment):
    """To fp32's budget: the logits of bf16 rows are never rounded to bf16."""
    for v, h in ((1, 1), (33, 100), (2051, 65)):
        x, ids, (w, b) = randn(9, h, dtype=dtype), draw_ids(9, v), head(v, h, dtype)
        z = exact(x) @ exact(w).T + exact(b)
        assert_right(ops.logprob(x, ids, w, b, **adjustment), z, ids, **adjustment)


@pytest.mark.parametrize("by_columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("_threads")
def test_hidden_rows_and_their_logits_give_the_same_bits(dtype, by_columns):
    for v in (1, 17, 1000, 4099):
        x, ids = randn(37, 64, dtype=dtype), draw_ids(37, v)
        w, b = head(v, 64, dtype, by_columns)
        for adjustment in (PLAIN, COLD, ADJUSTED):
            assert same_from_logits(x, ids, w, b, **adjustment)
            assert same_from_logits(x, ids, w, None, **adjustment)


@pytest.mark.usefixtures("_threads")
def test_so_they_do_where_the_logits_take_several_chunks():
    x, ids, (w, b) = randn(100, 32), draw_ids(100, 50257), head(50257, 32, torch.float32)
    assert same_from_logits(x, ids, w, b)
    assert same_from_logits(x.view(4, 25, 32), ids.view(4, 25), w, b, **ADJUSTED)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("_threads")
def test_a_row_does_not_depend_on_its_neighbours(dtype):
    for v in (1, 7, 1000, 1025):
        x, ids = randn(max(ROWS), 40, dtype=dtype), draw_ids(max(ROWS), v)
        z = randn(max(ROWS), v, dtype=dtype)
        for adjustment in (PLAIN, ADJUSTED):
            assert rows_differing(z, ids, **adjustment) == 0
            assert rows_differing(x, ids, *head(v, 40, dtype), **adjustment) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_change_no_bit(dtype):
    z, ids = randn(6, 101, dtype=dtype), draw_ids(6, 101)
    want = ops.logprob(z, ids)
    longer = torch.full((6, 107), 99.0, dtype=dtype)
    longer[:, 3:-3] = z
    for same in (longer[:, 3:-3], z.t().contiguous().t(), z.view(2, 3, 101)):
        found = ops.logprob(same, ids.view(same.shape[:-1]))
        assert all(same_bits(a.view(6), b) for a, b in zip(found, want, strict=True))
    found = ops.logprob(z[:1].expand(6, 101), ids[:1].expand(6))
    assert all(same_bits(a, b[:1].expand(6)) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("adjustment", [PLAIN, ADJUSTED], ids=str)
def test_an_element_counts_the_same_wherever_it_stands(adjustment):
    """Equal logits are equally likely, in the last, partial vector too."""
    for v in (3, 17, 1029):
        z = torch.full((v, v), 1.37)
        found, _ = ops.logprob(z, torch.arange(v), **adjustment)
        assert len(found.unique()) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_filtered_logits_have_probability_zero(dtype):
    z = randn(5, 1029, dtype=dtype).masked_fill(randn(5, 1029, seed=3) < 0.5, -INF)
    ids = z.argmax(-1)
    assert_right(ops.logprob(z, ids), exact(z), ids)
    assert_right(ops.logprob(z, ids, **COLD), exact(z), ids, **COLD)
    out = (z == -INF).int().argmax(-1)
    assert (ops.logprob(z, out)[0] == -INF).all()
    one = torch.full((1, 20), -INF, dtype=dtype)
    one[0, 19] = 3
    assert [t.item() for t in ops.logprob(one, torch.tensor([19]))] == [0, 0]


def test_a_nan_spoils_its_row_alone():
    z, ids = randn(3, 100), draw_ids(3, 100)
    want = ops.logprob(z, ids)
    z[1, 70] = float("nan")
    for found, other in zip(ops.logprob(z, ids), want, strict=True):
        assert found.isnan().tolist() == [False, True, False]
        assert same_bits(found[::2], other[::2])


def test_nothing_to_do():
    x, ids = torch.empty(0, 4), torch.empty(0, dtype=torch.int64)
    w, b = head(7, 4, torch.float32)
    for found in (ops.logprob(x, ids), ops.logprob(x, ids, w, b), ops.logprob(x, ids, w[:0])):
        assert [(t.shape, t.dtype) for t in found] == [((0,), torch.float32)] * 2
    found = ops.logprob(torch.empty(2, 0), torch.tensor([0, 6]), torch.empty(7, 0), b)
    assert_right(found, exact(b.expand(2, 7)), torch.tensor([0, 6]))


@pytest.mark.parametrize("bad", [7, -1, 2**40])
def test_an_id_that_is_no_logits_is_refused(bad):
    x, ids, (w, b) = randn(3, 4), torch.tensor([0, bad, 1]), head(7, 4, torch.float32)
    for arguments in ((x, ids, w, b), (randn(3, 7), ids)):
        with pytest.raises(IndexError, match=f"ids holds {bad}.* V is 7"):
            ops.logprob(*arguments)


def test_the_logits_are_not_held_at_once():
    """500 rows of 50257 fp32 logits take 96 MiB."""
    x, ids, (w, b) = randn(500, 4), draw_ids(500, 50257), head(50257, 4, torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        ops.logprob(x, ids, w, b)
    taken = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert 8 << 20 < taken < 17 << 20


@pytest.mark.parametrize("isa", ISAS)
def test_on_every_instruction_set(isa):
    assert run(__file__, isa) == [isa, *["0 True"] * 6]


if __name__ == "__main__":
    with torch.no_grad(), ops.use(NATIVE):
        ops.linear(torch.ones(1, 1), torch.ones(1, 1))
        assert torch.ops.accel_cpu_kernels.isa() == sys.argv[1]
        print(torch.ops.accel_cpu_kernels.isa())
        for some in DTYPES:
            for how in (PLAIN, ADJUSTED):
                rows, chosen, weights = (
                    randn(64, 65, dtype=some),
                    draw_ids(64, 331),
                    head(331, 65, some),
                )
                logits = ops.linear(rows, *weights, out_dtype=torch.float32)
                assert_right(ops.logprob(logits, chosen, **how), exact(logits), chosen, **how)
                print(
                    rows_differing(rows, chosen, *weights, **how),
                    same_from_logits(rows, chosen, *weights, **how),
                )
