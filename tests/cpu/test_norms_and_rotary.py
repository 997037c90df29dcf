"""accel_cpu.native: the ops that go through rows, and the exponential under attention."""

import ctypes
import sys

import numpy as np
import pytest
import torch
from instruction_sets import (
    DTYPES,
    ISAS,
    assert_samples_are_right,
    randn,
    run,
    same_bits,
    skip_without,
)

from accel import NativeLibrary, Source, ops
from accel.contracts import CONTRACTS
from accel_cpu.builders import _AVX2, _AVX512, _CSRC, _NEON, LIBRARY

pytestmark = pytest.mark.usefixtures("_native")

OPS = (
    "rms_norm", "layer_norm", "add_norm", "bias_act", "dropout_add", "softmax", "rotary",
    "embedding",
)  # fmt: skip
NATIVE = ";".join(f"{op}=accel_cpu.native" for op in OPS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 7, 16, 63, 64, 1000, 4096])
@pytest.mark.usefixtures("_threads")
def test_a_row_of_layer_norm_does_not_depend_on_its_neighbours(k, dtype):
    x, w, b = randn(257, k, dtype=dtype) * 9 + 5, randn(k, dtype=dtype), randn(k, dtype=dtype)
    alone = torch.cat([ops.layer_norm(row, w, b) for row in x.split(1)])
    for m in (1, 2, 3, 33, 257):
        assert same_bits(ops.layer_norm(x[:m], w, b), alone[:m])
        shifted = torch.empty(m, k + 3, dtype=dtype)[:, 3:].copy_(x[:m])
        assert same_bits(ops.layer_norm(shifted, w, b), alone[:m])


def test_layer_norm_takes_the_mean_first():
    """A row far from zero: squares of the raw values would lose every digit of its variance."""
    x = randn(4, 1000) + 1000
    from agreement import assert_agree  # not of a script, which this file also is

    want = torch.nn.functional.layer_norm(x.double(), (1000,))
    # Deviations of 1 from 1000 keep 2^-10 of themselves.
    assert_agree(ops.layer_norm(x), want.float(), operations=1000)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("_threads")
def test_rotary_has_the_bits_of_the_composition_wherever_x_lies(dtype, interleaved):
    rotary, reference = ops.rotary, CONTRACTS["rotary"].reference
    for rows, heads, d, r in ((1, 1, 2, 1), (300, 4, 128, 64), (33, 3, 37, 11), (5, 2, 300, 150)):
        qkv = randn(rows, heads + 2, d, dtype=dtype)
        x, angle = qkv[:, 1:-1], randn(rows, r) * 100
        cos, sin = angle.cos(), angle.sin()
        want = rotary(x, cos, sin, interleaved=interleaved)
        assert same_bits(want, reference(x, cos, sin, interleaved))
        assert same_bits(want, rotary(x.contiguous(), cos, sin, interleaved=interleaved))
        alone = [
            rotary(x[i : i + 1], cos[i : i + 1], sin[i : i + 1], interleaved=interleaved)
            for i in range(rows)
        ]
        assert same_bits(want, torch.cat(alone))


def test_rotary_copies_the_elements_it_does_not_turn():
    x = randn(3, 2, 10)
    x.view(torch.int32)[..., 9] = 0x7FA12345  # a NaN of these bits and no other
    y = ops.rotary(x, torch.ones(3, 4), torch.zeros(3, 4))
    assert same_bits(y, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.usefixtures("_threads")
def test_embedding_copies_rows(ids_dtype, dtype):
    w = torch.randint(-(2**15), 2**15, (101, 2 * 67), dtype=torch.int16).view(dtype)[:, 5:]
    ids = torch.randint(0, 101, (40, 30)).to(ids_dtype)
    assert same_bits(ops.embedding(ids, w), w.contiguous()[ids.long()])


@pytest.mark.parametrize("bad", [-1, 11, 2**31 - 1])
def test_an_id_out_of_range_is_named(bad):
    ids = torch.tensor([[0, 10], [bad, 3]])
    with pytest.raises(IndexError, match=rf"{bad} at position 2; w has V = 11"):
        ops.embedding(ids, torch.ones(11, 4))


@pytest.mark.parametrize("isa", ISAS)
def test_values_on_every_instruction_set(isa):
    assert run(__file__, isa) == [isa, *OPS]


EXP = """
#include VECTORS
#include "elementwise.h"
#include "exponential.h"

extern "C" __attribute__((visibility("default"))) void exp_of(const float* a, float* out,
                                                              int64_t size) {
  using namespace accel_cpu;
  for_each_vector(size, [=](int64_t i, auto... n) {
    store(out + i, accel_cpu::exp(load(a + i, n...)), n...);
  });
}
"""
FLAGS = {"avx512": _AVX512, "avx2": _AVX2, "neon": _NEON, "scalar": ()}


@pytest.fixture(params=FLAGS)
def exp(request, tmp_path):
    """The kernels' exp on a float32 array."""
    isa = request.param
    skip_without(isa)
    source = tmp_path / f"exp_{isa}.cpp"
    source.write_text(EXP)
    flags = (*LIBRARY.flags, f"-I{_CSRC}", f'-DVECTORS="vec_{isa}.h"', *FLAGS[isa])
    call = NativeLibrary(f"exp_{isa}", [Source(source)], flags=flags).load().exp_of

    def exp(a):
        a = np.ascontiguousarray(a, np.float32)
        out = np.full_like(a, 7)
        pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (a, out))
        call(*pointers, ctypes.c_int64(a.size))
        return out

    return exp


def test_exp_is_right_over_all_of_float32(exp):
    every = np.arange(0, 2**32, 331, dtype=np.uint64).astype(np.uint32).view(np.float32)
    a = np.concatenate([every, np.linspace(-104, 89, 4_000_001, dtype=np.float32)])
    found = exp(a).astype(np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        want = np.exp(a.astype(np.float64))
        rounded = want.astype(np.float32)
    assert np.array_equal(np.isnan(found), np.isnan(want))
    assert np.array_equal(found == np.inf, rounded == np.inf)
    finite = np.isfinite(rounded)
    found, want = found[finite], want[finite]
    ulp = np.exp2(np.maximum(np.frexp(want)[1] - 24, -149.0))
    error = np.abs(found - want) / ulp
    normal = want >= 2.0**-126
    assert error[normal].max() < 2
    assert error[~normal].max() < 1  # of the smallest subnormal's size
    assert exp(np.zeros(1)) == 1
    assert exp(np.full(1, -np.inf)) == 0


def test_exp_has_the_same_bits_wherever_an_element_stands(exp):
    a = np.linspace(-104, 89, 1001, dtype=np.float32)
    alone = np.concatenate([exp(one) for one in a.reshape(-1, 1)])
    for start in range(20):
        for end in (start + 1, start + 15, 999, 1000, 1001):
            assert np.array_equal(exp(a[start:end]), alone[start:end])


def on_this_instruction_set():
    LIBRARY.load()
    kernels = torch.ops.accel_cpu_kernels
    print(kernels.isa())
    for name in OPS:
        assert_samples_are_right(getattr(kernels, f"{name}_native"), name)
        print(name)


if __name__ == "__main__":
    assert len(sys.argv) == 2
    on_this_instruction_set()
