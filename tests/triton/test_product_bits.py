"""Products by Triton under the interpreter: no tuning changes a bit, and what is made of linear has
linear's bits."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton, which compiles for GPUs alone")

from interpreter import backend, shim

from accel import testing
from accel.contracts import CONTRACTS
from accel.triton_kernels import KERNELS
from accel.triton_kernels.builders import kernel
from accel.triton_kernels.tuning import Tile, Tuning
from accel_cuda import tuning as cuda
from accel_xpu.tuning import TUNING as XPU

PRODUCTS = [op for op in KERNELS if op.endswith("linear")]
FEW, MANY = Tile(1, 16, 4, 2), Tile(2, 128, 8, 3)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def loaded(op, tuning=backend.TUNING):
    with shim.decorating():
        return kernel(op, tuning).run


def drawn(*shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


@DTYPES
@pytest.mark.parametrize("op", PRODUCTS)
def test_tuning_changes_no_bit(op, dtype):
    args = next(iter(CONTRACTS[op].samples())).make(dtype, torch.device(testing.HOST))
    one, other = (loaded(op, Tuning(tile, tile, tile, tile))(*args) for tile in (FEW, MANY))
    assert torch.equal(one, other)


@DTYPES
def test_an_experts_rows_have_linears_bits(dtype):
    x, w, b = (drawn(*shape, dtype=dtype) for shape in ((21, 70), (2, 9, 70), (2, 9)))
    found = loaded("grouped_linear")(x, w, torch.tensor([17, 21]), b, "silu", None)
    linear = loaded("linear")
    assert torch.equal(found[:17], linear(x[:17], w[0], b[0], "silu", None))
    assert torch.equal(found[17:], linear(x[17:], w[1], b[1], "silu", None))


@DTYPES
def test_a_gated_product_has_linears_bits(dtype):
    x, gate, up = (drawn(*shape, dtype=dtype) for shape in ((5, 70), (9, 70), (9, 70)))
    linear = loaded("linear")
    opened, other = (linear(x, w, None, a, torch.float32) for w, a in ((gate, "relu"), (up, None)))
    found = loaded("gated_linear")(x, gate, up, None, None, "relu", torch.float32)
    assert torch.equal(found, opened * other)


def test_tiles_of_whole_chunks_have_linears_bits():
    x, w = drawn(5, 80, dtype=torch.float32), drawn(9, 80, dtype=torch.float32, seed=1)
    tiled = loaded("tiled_linear")
    first = tiled(x[:, :64], w[:, :64], None, None, torch.float32)
    assert torch.equal(
        tiled(x[:, 64:], w[:, 64:], None, first, None), loaded("linear")(x, w, None, None, None)
    )


def test_writing_to_a_place_gives_the_same_and_leaves_the_rest():
    with shim.decorating():
        tiled = kernel("tiled_linear", backend.TUNING)
    x, w = drawn(5, 20, dtype=torch.float32), drawn(9, 20, dtype=torch.float32, seed=1)
    place = torch.full((5, 12), 7.0)
    tiled.into(x, w, None, None, place[:, 2:11])
    assert torch.equal(place[:, 2:11], tiled(x, w, None, None, None))
    assert (place[:, :2] == 7).all()
    assert (place[:, 11:] == 7).all()


@pytest.mark.parametrize(
    ("architecture", "like"),
    [("sm_80", "sm_80"), ("sm_89", "sm_80"), ("sm_90", "sm_90"), ("sm_120", "sm_100"),
     ("gfx942", "gfx942"), ("gfx1100", "gfx942")],
)  # fmt: skip
def test_an_architecture_has_its_own_tuning_or_that_of_the_one_before(architecture, like):
    assert cuda.of(architecture) is cuda.TUNINGS[like]


def test_tunings_are_tiles_that_a_kernel_can_have():
    for tuning in (*cuda.TUNINGS.values(), XPU, backend.TUNING):
        for dtype in (torch.float32, torch.bfloat16):
            for rows in (1, 16, 17, 4096):
                tile = tuning.product(dtype, rows)
                assert tile.columns >= 16
                assert tile.columns & (tile.columns - 1) == 0
                assert tile.halved().blocks >= 1
