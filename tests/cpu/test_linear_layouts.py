"""accel_cpu.native linear where the weight lies by columns, [K, N]: read as it lies, the row of a
batch is the row alone, and a column is that column alone."""

import itertools
import sys

import pytest
import torch
from instruction_sets import DTYPES, ISAS, randn, run, same_bits

from accel import ops
from accel.contracts import CONTRACTS
from accel_conformance.measure import exact, shares

pytestmark = pytest.mark.usefixtures("_native")

NATIVE = "linear=accel_cpu.native;gated_linear=accel_cpu.native;tiled_linear=accel_cpu.native"
ROWS = (1, 2, 3, 5, 8, 16, 17, 33, 64)  # the last is packed
FP32 = CONTRACTS["linear"].tolerance[torch.float32]


def by_columns(n, k, dtype=torch.float32, extra=0):
    """[n, k] as a Conv1D keeps it, [k, n], its rows ``extra`` longer than used."""
    stored = randn(k, n + extra, seed=1) / max(k, 1) ** 0.5
    return stored.to(dtype)[:, extra // 2 : extra // 2 + n].t()


def cancelling(rows, k, dtype):
    """Rows whose sums nearly cancel, so that another order of summation shows."""
    half = randn(rows, k // 2) * 100
    x = torch.cat([half, -half, torch.zeros(rows, k % 2)], 1)
    x = x[:, torch.randperm(k, generator=torch.Generator().manual_seed(2))]
    return (x + randn(rows, k, seed=3)).to(dtype)


def error(x, w, b=None):
    """Shares of linear's fp32 budget, the result not rounded to x's dtype."""
    want = exact(x) @ exact(w).T + (0 if b is None else exact(b))
    return shares(ops.linear(x, w, b, out_dtype=torch.float32), want, FP32)


def rows_differing(x, w, b=None):
    """How many rows of the first M differ from the row alone, over all M."""
    alone = torch.cat([ops.linear(row, w, b) for row in x.split(1)])
    batches = [ops.linear(x[:m], w, b) for m in ROWS]
    return sum(not same_bits(y[i], alone[i]) for y in batches for i in range(len(y)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("k", "n"), [(1, 5), (2, 1), (63, 31), (64, 64), (65, 200), (1000, 131), (4097, 67), (96, 3001)]
)
@pytest.mark.usefixtures("_threads")
def test_a_row_does_not_depend_on_its_neighbours(k, n, dtype):
    w, b = by_columns(n, k, dtype), randn(n, dtype=dtype)
    assert rows_differing(cancelling(max(ROWS), k, dtype), w, b) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("_threads")
def test_nor_does_a_block_of_rows_on_the_next(dtype):
    """More rows than one block takes, 96, and than fill its last tile."""
    x, w = cancelling(203, 300, dtype), by_columns(500, 300, dtype)
    assert same_bits(ops.linear(x, w), torch.cat([ops.linear(row, w) for row in x.split(1)]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("m", "k", "n"), [(48, 1, 1), (61, 0, 5), (771, 257, 37), (50, 513, 1061), (1550, 70, 65)]
)
@pytest.mark.usefixtures("_threads")
def test_many_rows_take_the_same_sums_whichever_way_x_lies(m, k, n, dtype):
    """Rows, columns and k over the ends of tiles, of parts and of what is packed at once."""
    x, w, b = cancelling(m, k, dtype), by_columns(n, k, dtype, extra=3), randn(n, dtype=dtype)
    want = torch.cat([ops.linear(rows, w, b) for rows in x.split(31)])  # too few to be packed
    assert same_bits(ops.linear(x, w, b), want)
    assert same_bits(ops.linear(x.t().contiguous().t(), w, b), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wide", [False, True])
def test_many_rows_are_added_to_a_partial_sum_and_written_in_place(dtype, wide):
    x, w, b = randn(100, 300, dtype=dtype), by_columns(70, 300, dtype), randn(70, dtype=dtype)
    partial = randn(100, 140, dtype=torch.float32 if wide else dtype)[:, 35:105]
    want = torch.cat([ops.tiled_linear(a, w, b, c) for a, c in zip(x.split(31), partial.split(31))])
    assert same_bits(ops.tiled_linear(x, w, b, partial), want)
    if not wide:
        ops.tiled_linear(x, w, b, partial, out=partial)
        assert same_bits(partial, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cuts", [(2048,), (2048, 4096)], ids=str)
@pytest.mark.parametrize(("m", "n"), [(1, 70), (5, 64), (40, 200), (150, 131)])
@pytest.mark.usefixtures("_threads")
def test_tiles_of_whole_chunks_of_k_give_the_bits_of_the_whole(m, n, cuts, dtype):
    k = 4300
    x, b = cancelling(m, k, dtype), randn(n, dtype=dtype)
    w = randn(n, k, seed=1).to(dtype)
    total = None
    for start, end in itertools.pairwise((0, *cuts, k)):
        bias = b if end == k else None
        tile = w[:, start:end]
        total = ops.tiled_linear(x[:, start:end], tile, bias, total, out_dtype=torch.float32)
    assert same_bits(total, ops.linear(x, w, b, out_dtype=torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_rows_with_an_adapter(dtype):
    x, w = randn(100, 70, dtype=dtype), by_columns(130, 70, dtype)
    down, up, b = randn(9, 70, dtype=dtype), randn(130, 9, dtype=dtype), randn(130, dtype=dtype)
    want = torch.cat([ops.lora_linear(rows, w, down, up, b, scale=0.5) for rows in x.split(31)])
    assert same_bits(ops.lora_linear(x, w, down, up, b, scale=0.5), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_column_does_not_depend_on_the_others_nor_on_where_they_lie(dtype):
    x, w = cancelling(7, 130, dtype), by_columns(301, 130, dtype, extra=6)
    want = ops.linear(x, w)
    for first, last in ((0, 1), (1, 18), (5, 301), (63, 64), (300, 301)):
        assert same_bits(ops.linear(x, w[first:last]), want[:, first:last].contiguous())
    assert same_bits(ops.linear(x, w.t().contiguous().t()), want)
    longer = torch.zeros(7, 135, dtype=dtype)
    longer[:, 3:133] = x
    assert same_bits(ops.linear(longer[:, 3:133], w), want)
    assert same_bits(ops.linear(x[:1].expand(5, 130), w), want[:1].expand(5, 301))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("m", [1, 17, 80])
def test_nothing_is_left_of_an_earlier_product(m, dtype):
    """Where k ends inside what is multiplied at once; small, so that one thread computes both."""
    x, nan = randn(m, 37, dtype=dtype), torch.full((m, 64), torch.nan, dtype=dtype)
    for w, last in (
        (randn(15, 37, dtype=dtype), nan[:1].expand(15, 64)),
        (by_columns(15, 37, dtype), nan[0, :1].expand(64, 15).contiguous().t()),
    ):
        assert ops.linear(nan, last).isnan().all()
        assert ops.linear(x, w).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (1, 64, 128), (7, 63, 33), (100, 2051, 67), (3, 11008, 257)]
)
def test_it_is_right(m, k, n, dtype):
    used = error(randn(m, k, dtype=dtype), by_columns(n, k, dtype, extra=3), randn(n, dtype=dtype))
    assert used.within, str(used)


@pytest.mark.parametrize(("m", "k", "n"), [(0, 4, 3), (2, 4, 0), (2, 0, 3), (0, 0, 0)])
def test_nothing_to_do(m, k, n):
    b = randn(n)
    assert same_bits(ops.linear(randn(m, k), by_columns(n, k), b), b.expand(m, n).contiguous())


@pytest.mark.parametrize("act", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("out_dtype", [None, *DTYPES], ids=str)
def test_activations_and_results_in_another_dtype(act, out_dtype):
    x, w = randn(9, 50, dtype=torch.bfloat16), by_columns(130, 50, torch.bfloat16)
    y = ops.linear(x, w, act=act, out_dtype=out_dtype)
    assert y.dtype is (out_dtype or torch.bfloat16)
    want = CONTRACTS["linear"].reference(x.double(), w.double(), None, act)
    assert shares(y, exact(want), CONTRACTS["linear"].tolerance[y.dtype]).within


def copies(call):
    with torch.profiler.profile() as profile:
        call()
    return sum("copy" in event.key for event in profile.key_averages())


def test_nothing_is_copied():
    """And the check can see a copy: of a weight strided both ways."""
    x, w, down, up = randn(2, 64), by_columns(128, 64), by_columns(4, 64), by_columns(128, 4)
    assert copies(lambda: ops.linear(x, w)) == 0
    assert copies(lambda: ops.linear(randn(64, 60).t(), w)) == 0
    assert copies(lambda: ops.gated_linear(x, w, w)) == 0
    assert copies(lambda: ops.lora_linear(x, w, down, up)) == 0
    assert copies(lambda: ops.linear(x, by_columns(128, 128)[:, ::2])) > 0
    strided = w[::2, ::2]
    want = ops.linear(x[:, ::2], strided.contiguous())
    assert same_bits(ops.linear(x[:, ::2], strided), want)


@pytest.mark.parametrize("isa", ISAS)
def test_on_every_instruction_set(isa):
    assert run(__file__, isa) == [isa, *["0 True"] * 9]


if __name__ == "__main__":
    with torch.no_grad(), ops.use(NATIVE):
        ops.linear(torch.ones(1, 1), torch.ones(1, 1))
        print(torch.ops.accel_cpu_kernels.isa())
        assert torch.ops.accel_cpu_kernels.isa() == sys.argv[1]
        for some in DTYPES:
            for k, n in ((65, 33), (200, 131), (2051, 13)):
                weight = by_columns(n, k, some)
                print(
                    rows_differing(cancelling(max(ROWS), k, some), weight),
                    error(randn(9, k, dtype=some), weight, randn(n, dtype=some)).within,
                )


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")
@pytest.mark.parametrize("gaps", ["every_second", "all_one"])
def test_onednn_reads_a_bias_with_gaps(gaps):
    x, w, b = randn(4, 16), randn(6, 16, seed=1), randn(12, seed=2)
    b = b[::2] if gaps == "every_second" else b[:1].expand(6)
    with ops.use("linear=accel_cpu.onednn", exact=False):
        assert same_bits(ops.linear(x, w, b), ops.linear(x, w, b.clone().contiguous()))
