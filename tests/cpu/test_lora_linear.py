"""accel_cpu.native lora_linear: the adapter's share is summed in fp32 and rounded with the product,
and the row of a batch is the row alone."""

import sys

import pytest
import torch
from instruction_sets import DTYPES, ISAS, randn, run, same_bits

from accel import ops
from accel.contracts import CONTRACTS
from accel_conformance.measure import exact, shares

pytestmark = pytest.mark.usefixtures("_native")

NATIVE = "linear=accel_cpu.native;lora_linear=accel_cpu.native"
ROWS = (1, 2, 3, 5, 8, 16, 17, 33, 64)
LAYOUTS = ("rows", "columns")
SIZES = (  # k, n, r
    (1, 1, 1),
    (64, 64, 8),
    (63, 131, 5),
    (1000, 257, 67),
    (2051, 33, 16),
)


def arguments(m, k, n, r, dtype, layout="rows"):
    """x, w, lora_a, lora_b and b; w lies as [n, k] or as [k, n]."""
    w = randn(n, k, seed=1) / max(k, 1) ** 0.5
    lora_a, lora_b = randn(r, k, seed=2) / max(k, 1) ** 0.5, randn(n, r, seed=3)
    x, w, lora_a, lora_b, b = (
        t.to(dtype) for t in (randn(m, k), w, lora_a, lora_b, randn(n, seed=4))
    )
    return x, w if layout == "rows" else w.t().contiguous().t(), lora_a, lora_b, b


def expected(x, w, lora_a, lora_b, b, scale):
    x, w, lora_a, lora_b, b = map(exact, (x, w, lora_a, lora_b, b))
    return x @ w.T + b + scale * ((x @ lora_a.T) @ lora_b.T)


def error(arguments, out_dtype=torch.float32, scale=0.7):
    y = ops.lora_linear(*arguments, scale=scale, out_dtype=out_dtype)
    tolerance = CONTRACTS["linear"].tolerance[y.dtype]
    return shares(y, expected(*arguments, scale), tolerance)


def rows_differing(arguments):
    """How many rows of the first M differ from the row alone, over all M."""
    x, *rest = arguments
    alone = torch.cat([ops.lora_linear(row, *rest, scale=2.0) for row in x.split(1)])
    batches = [ops.lora_linear(x[:m], *rest, scale=2.0) for m in ROWS]
    return sum(not same_bits(y[i], alone[i]) for y in batches for i in range(len(y)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.usefixtures("_threads")
def test_a_row_does_not_depend_on_its_neighbours(size, layout, dtype):
    assert rows_differing(arguments(max(ROWS), *size, dtype, layout)) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_right_and_rounds_nothing_on_the_way(size, layout, dtype):
    """To linear's fp32 budget whatever the dtype of x: a rounded inner product would show."""
    for m in (1, 9):
        args = arguments(m, *size, dtype, layout)
        assert error(args).within, str(error(args))
        assert error(args, out_dtype=None).within


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_rank_or_share_it_is_linear_bit_for_bit(dtype, layout):
    x, w, _, _, b = arguments(5, 100, 67, 0, dtype, layout)
    want = ops.linear(x, w, b)
    assert same_bits(ops.lora_linear(x, w, w[:0], w[:, :0], b, scale=float("inf")), want)
    assert same_bits(ops.lora_linear(x, w, w[:3], torch.zeros_like(w[:, :3]), b), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_change_no_bit(dtype):
    x, w, lora_a, lora_b, b = arguments(6, 40, 24, 8, dtype)
    want = ops.lora_linear(x, w, lora_a, lora_b, b)

    def sliced(t):
        longer = torch.zeros(t.shape[0], t.shape[1] + 5, dtype=dtype)
        longer[:, 3:-2] = t
        return longer[:, 3:-2]

    def transposed(t):
        return t.t().contiguous().t()

    got = ops.lora_linear(sliced(x), sliced(w), sliced(lora_a), sliced(lora_b), b)
    assert same_bits(got, want)
    got = ops.lora_linear(transposed(x), w, transposed(lora_a), transposed(lora_b), b)
    assert same_bits(got, want)
    got = ops.lora_linear(x.view(2, 3, 40), w, lora_a, lora_b, b)
    assert same_bits(got.view(6, 24), want)


@pytest.mark.parametrize(("m", "k", "n", "r"), [(0, 4, 3, 2), (2, 4, 0, 2), (2, 0, 3, 2)])
def test_nothing_to_do(m, k, n, r):
    x, w, lora_a, lora_b, b = arguments(m, k, n, r, torch.float32)
    want = b.expand(m, n).contiguous()
    assert same_bits(ops.lora_linear(x, w, lora_a, lora_b, b), want)


def test_shapes_that_do_not_fit_are_named():
    x, w, lora_a, lora_b, b = arguments(2, 4, 3, 2, torch.float32)
    kernel = torch.ops.accel_cpu_kernels.lora_linear_native
    with pytest.raises(RuntimeError, match="lora_a has shape"):
        kernel(x, w, lora_a[:, :3], lora_b, b)
    with pytest.raises(RuntimeError, match="lora_b has shape"):
        kernel(x, w, lora_a, lora_b.t(), b)
    with pytest.raises(RuntimeError, match="lora_b is Half"):
        kernel(x, w, lora_a, lora_b.half(), b)


@pytest.mark.parametrize("isa", ISAS)
def test_on_every_instruction_set(isa):
    assert run(__file__, isa) == [isa, *["0 True True"] * 12]


if __name__ == "__main__":
    with torch.no_grad(), ops.use(NATIVE):
        ops.linear(torch.ones(1, 1), torch.ones(1, 1))
        assert torch.ops.accel_cpu_kernels.isa() == sys.argv[1]
        print(torch.ops.accel_cpu_kernels.isa())
        for some in DTYPES:
            for lies in LAYOUTS:
                for size in ((100, 33, 7), (65, 131, 67)):
                    batch = arguments(max(ROWS), *size, some, lies)
                    print(rows_differing(batch), error(batch).within, error(batch, None).within)
