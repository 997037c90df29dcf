"""accel_cpu.native quantized_linear: whole numbers are widened as they are read, sums take their
scale, and the row of a batch is the row alone."""

import pytest
import torch
from instruction_sets import DTYPES, randn, same_bits

import accel
from accel import layers, ops
from accel.contracts import CONTRACTS
from accel.contracts.quantized_linear import dequantize, quantize
from accel_conformance.measure import exact, shares
from accel_conformance.oracles import ORACLES

pytestmark = pytest.mark.usefixtures("_native")

NATIVE = "quantized_linear=accel_cpu.native"
ROWS = (1, 2, 3, 4, 5, 6, 7, 16, 33, 73, 130)
SIZES = (  # k, n, group: of one scale a row, of whole chunks of k, and of groups that divide none
    (1030, 131, None), (640, 33, 128), (2048, 67, 64), (11008, 9, 256), (2050, 31, 2),
    (192, 9, 96), (96, 70, 32), (1056, 21, 32), (30, 19, 10), (2, 1, None),
)  # fmt: skip

each_bits = pytest.mark.parametrize("bits", [8, 4])


def weight(n, k, bits, group=None):
    return quantize(randn(n, k, seed=1) / k**0.5, bits, group)


def cancelling(rows, k, dtype):
    """Rows whose sums nearly cancel, so that another order of summation shows."""
    half, order = randn(rows, k // 2) * 100, randn(k, seed=2).argsort()
    return (torch.cat([half, -half], 1)[:, order] + randn(rows, k, seed=3)).to(dtype)


def rows_differing(x, w, scales, b, bits):
    """How many rows differ from the row alone: of the first M, and of others from the middle."""
    alone = torch.cat([ops.quantized_linear(row, w, scales, b, bits=bits) for row in x.split(1)])
    differing = 0
    for m in ROWS:
        for start in {0, min(41, len(x) - m)}:
            batch = ops.quantized_linear(x[start : start + m], w, scales, b, bits=bits)
            differing += sum(not same_bits(y, z) for y, z in zip(batch, alone[start:]))
    return differing


def error(x, w, scales, b, bits, act=None):
    """Shares of the fp32 budget, the result not rounded to x's dtype."""
    y = ops.quantized_linear(x, w, scales, b, bits=bits, act=act, out_dtype=torch.float32)
    want = ORACLES["quantized_linear"].value(*map(exact, (x, w, scales, b)), bits, act)
    return shares(y, want, CONTRACTS["quantized_linear"].tolerance[torch.float32])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@each_bits
@pytest.mark.usefixtures("_threads")
def test_a_row_does_not_depend_on_its_neighbours(bits, size, dtype):
    k, n, group = size
    x, b = cancelling(max(ROWS), k, dtype), randn(n, dtype=dtype)
    assert rows_differing(x, *weight(n, k, bits, group), b, bits) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [*SIZES, (4096, 24, None)], ids=str)
@each_bits
def test_it_is_right(bits, size, dtype):
    k, n, group = size
    for m in (1, 5, 9):
        args = randn(m, k, dtype=dtype), *weight(n, k, bits, group), randn(n, dtype=dtype)
        assert error(*args, bits).within, str(error(*args, bits))
        assert error(*args, bits, act="silu").within


@pytest.mark.parametrize("size", [size for size in SIZES if size[0] >= 128], ids=str)
@each_bits
def test_in_fp32_it_is_a_linear_by_the_dequantised_weight(bits, size):
    k, n, group = size
    w, scales = weight(n, k, bits, group)
    with ops.use("linear=accel_cpu.native"):
        for m in (1, 9, 33, 100):
            x, b = randn(m, k), randn(n)
            want = ops.linear(x, dequantize(w, scales, bits), b)
            assert same_bits(ops.quantized_linear(x, w, scales, b, bits=bits), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_bits
def test_columns_and_strides_change_no_bit(bits, dtype):
    x, (w, scales), b = randn(9, 256, dtype=dtype), weight(301, 256, bits, 64), randn(301)
    b = b.to(dtype)
    want = ops.quantized_linear(x, w, scales, b, bits=bits)
    for first, last in ((0, 1), (1, 18), (5, 301), (63, 64), (300, 301)):
        some = slice(first, last)
        got = ops.quantized_linear(x, w[some], scales[some], b[some], bits=bits)
        assert same_bits(got, want[:, some].contiguous())

    def by_columns(t):
        return t.t().contiguous().t()

    def inside(t):
        return torch.cat([t[:, :3], t, t[:, :2]], 1)[:, 3:-2]

    for lies in (by_columns, inside):
        for m in (2, 9):
            rows = lies(x)[:m]
            got = ops.quantized_linear(rows, lies(w), lies(scales), b, bits=bits)
            assert same_bits(got, want[:m].contiguous())


@each_bits
def test_whole_numbers_are_taken_for_what_they_are(bits):
    """Every value that bytes can hold, -128 and of 4 bits -8 among them, alone and in its place."""
    held = torch.arange(256, dtype=torch.uint8).view(4, 64)
    w, scales = (held if bits == 4 else held.view(torch.int8)), torch.full((4, 1), 0.5)
    columns = torch.eye(64 * 8 // bits)
    got = ops.quantized_linear(columns, w, scales, bits=bits)
    assert torch.equal(got, dequantize(w, scales, bits).t())


@pytest.mark.parametrize(("m", "k", "n"), [(0, 4, 3), (2, 4, 0), (2, 0, 3), (0, 0, 0)])
@each_bits
def test_nothing_to_do(m, k, n, bits):
    w = torch.zeros(n, k * bits // 8, dtype=torch.int8 if bits == 8 else torch.uint8)
    scales, b = torch.full((n, 1), torch.inf), randn(n)
    if k:
        scales.fill_(1)
    got = ops.quantized_linear(randn(m, k), w, scales, b, bits=bits)
    want = dequantize(w, scales, bits).sum(1) + b
    assert same_bits(got, want.expand(m, n).contiguous())


BAD = {
    "bits": ({"bits": 2}, "bits is 2; possible are 8 and 4"),
    "bytes": ({"bits": 4}, r"w of 4 bits must be Byte; found Char"),
    "columns": ({"x": randn(2, 9)}, r"beside rows of 9 it must be \[N, 9\]"),
    "groups": ({"scales": torch.ones(5, 3)}, r"Float of shape \[5, G\], where G divides 8"),
    "scales": ({"scales": torch.ones(5, 1).half()}, "scales are Half"),
    "bias": ({"b": randn(4)}, "b has shape"),
    "dtype": ({"x": randn(2, 8).double()}, "x is Double"),
}


@pytest.mark.parametrize(("changed", "says"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_named(changed, says):
    good = {"x": randn(2, 8), "w": torch.ones(5, 8, dtype=torch.int8), "scales": torch.ones(5, 1)}
    kernel = torch.ops.accel_cpu_kernels.quantized_linear_native
    kernel(**good)
    with pytest.raises(RuntimeError, match=says):
        kernel(**{**good, **changed})


def test_a_layer_of_int8_takes_it():
    _, scales = weight(8, 16, 8)
    config = layers.inference.InferenceConfig(
        dtype=torch.int8, quantization_scales={"weight": scales}
    )
    # Chosen by priority.
    with accel.use_accelerator("cpu"), ops.use("quantized_linear=!reference"):
        decision = layers.inference.LinearOp(config).explain()["quantized_linear"]
    assert decision.chosen.impl.id == "accel_cpu.native"
