"""accel_cpu.native grouped_linear and norm_linear: the bits of linear, and of a norm before it."""

import sys

import pytest
import torch
from instruction_sets import DTYPES, ISAS, randn, run, same_bits

from accel import ops

NATIVE = ";".join(
    f"{op}=accel_cpu.native"
    for op in ("linear", "grouped_linear", "norm_linear", "rms_norm", "layer_norm")
)
COUNTS = ([2, 0, 5, 1], [0, 0, 90, 33], [7, 150, 0, 6])  # rows of each expert
SIZES = ((1, 1), (64, 64), (75, 131), (600, 200))  # k, n

pytestmark = pytest.mark.usefixtures("_served")


@pytest.fixture
def _served():
    with ops.use(NATIVE):
        yield


def by_columns(t):
    """The same numbers, lying the other way."""
    return t.mT.contiguous().mT


def apart(t):
    """The same numbers with gaps between rows and between experts."""
    longer = torch.zeros(*(size + 3 for size in t.shape), dtype=t.dtype)
    inside = longer[tuple(slice(1, size + 1) for size in t.shape)]
    return inside.copy_(t)


LAYOUTS = {"rows": lambda t: t, "columns": by_columns, "apart": apart}


def arguments(counts, k, n, dtype, rest=2):
    x = randn(sum(counts) + rest, k, dtype=dtype)
    w, b = randn(len(counts), n, k, seed=1) / k**0.5, randn(len(counts), n, seed=2)
    return x, w.to(dtype), torch.tensor(counts).cumsum(0), b.to(dtype)


def by_loop(x, w, ends, b, **options):
    """linear of each expert's rows, and nothing past the last."""
    rows = torch.tensor_split(x, ends)
    last = ops.linear(rows[-1], w[0], b[0], **options)
    found = [ops.linear(x, w[e], b[e], **options) for e, x in enumerate(rows[:-1])]
    return torch.cat([*found, torch.zeros_like(last)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.usefixtures("_threads")
def test_an_expert_s_rows_have_the_bits_of_linear(counts, dtype):
    for size in SIZES:
        x, w, ends, b = arguments(counts, *size, dtype)
        want = by_loop(x, w, ends, b)
        for lies in LAYOUTS.values():
            assert same_bits(ops.grouped_linear(lies(x), lies(w), ends, b), want)
        options = {"act": "gelu", "out_dtype": torch.float32}
        got = ops.grouped_linear(x, w, ends, b, **options)
        assert same_bits(got, by_loop(x, w, ends, b, **options))


@pytest.mark.parametrize("act", [None, "silu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_expert_s_gradients_are_those_of_its_rows_alone(dtype, act):
    """To the last bit, as the products are the same; whoever stands beside them."""
    x, w, ends, b = arguments([40, 0, 3], 70, 50, dtype)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    grad = randn(len(x), 50, dtype=dtype, seed=5)
    dx, dw, db = torch.autograd.grad(ops.grouped_linear(x, w, ends, b, act=act), leaves, grad)
    assert not dx[43:].any()
    assert not dw[1].any()
    for e, rows in ((0, slice(0, 40)), (2, slice(40, 43))):
        own = torch.tensor([rows.stop - rows.start])
        alone = [x[rows], w[e : e + 1], b[e : e + 1]]
        y = ops.grouped_linear(alone[0], alone[1], own, alone[2], act=act)
        found = torch.autograd.grad(y, alone, grad[rows])
        assert all(map(same_bits, found, (dx[rows], dw[e : e + 1], db[e : e + 1])))


@pytest.mark.parametrize(
    ("ends", "says"),
    [([3, 2], "found 2 for expert 1 after 3"), ([3, 8], "at most the 7 rows"), ([-1, 3], "-1")],
)
def test_ends_out_of_order_are_an_index_error(ends, says):
    x, w, _, b = arguments([3, 2], 4, 5, torch.float32)
    with pytest.raises(IndexError, match=says):
        ops.grouped_linear(x, w, torch.tensor(ends), b)


def of_norm(kind, x, w, norm_w, norm_b, b, **options):
    """The norm, then the product."""
    normed = ops.rms_norm(x, norm_w) if kind == "rms" else ops.layer_norm(x, norm_w, norm_b)
    return ops.linear(normed, w, b, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.usefixtures("_threads")
def test_norm_linear_has_the_bits_of_the_norm_and_of_linear(kind, dtype):
    eps = {"rms": 1e-6, "layer": 1e-5}[kind]
    for k, n in SIZES:
        tensors = randn(n, k) / k**0.5, randn(k, seed=2), randn(k, seed=3), randn(n, seed=4)
        w, norm_w, norm_b, b = (t.to(dtype) for t in tensors)
        norm_b = None if kind == "rms" else norm_b
        for m in (1, 5, 130):
            x = randn(m, k, dtype=dtype)
            for act in (None, "gelu"):
                got = ops.norm_linear(x, w, norm_w, norm_b, b, kind=kind, eps=eps, act=act)
                assert same_bits(got, of_norm(kind, x, w, norm_w, norm_b, b, act=act))
            # Beside an fp32 result nothing is rounded on the way.
            got = ops.norm_linear(
                x, w, norm_w, norm_b, b, kind=kind, eps=eps, out_dtype=torch.float32
            )
            wide = [None if t is None else t.float() for t in (x, w, norm_w, norm_b, b)]
            assert same_bits(got, of_norm(kind, *wide))


@pytest.mark.parametrize("isa", ISAS)
def test_on_every_instruction_set(isa):
    assert run(__file__, isa) == [isa, "True", "True", "True"]


if __name__ == "__main__":
    with torch.no_grad(), ops.use(NATIVE):
        ops.linear(torch.ones(1, 1), torch.ones(1, 1))
        assert torch.ops.accel_cpu_kernels.isa() == sys.argv[1]
        print(torch.ops.accel_cpu_kernels.isa())
        for some in DTYPES:
            args = arguments(COUNTS[2], 75, 131, some)
            product = same_bits(ops.grouped_linear(*args), by_loop(*args))
            rows, weight = args[0], args[1][0]
            two = of_norm("rms", rows, weight, None, None, None)
            print(product and same_bits(ops.norm_linear(rows, weight), two))
