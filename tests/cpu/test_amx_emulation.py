"""The emulation of AMX that ``make test-emulated`` trusts, against Intel's pseudo code in numpy."""

import ctypes
import platform
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from agreement import gamma

from accel import NativeLibrary, Source

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or "AVX2" not in torch.backends.cpu.get_cpu_capability(),
    reason="it multiplies by the FMA instructions of x86-64",
)

AMX = Path(__file__).parent / "emulation/amx.h"
TILES = """
extern "C" __attribute__((visibility("default"))) void multiply(const void* config, void* c,
                                                                const void* a, const void* b) {
  _tile_loadconfig(config);
  _tile_loadd(0, c, 64);
  _tile_loadd(1, a, 64);
  _tile_loadd(2, b, 64);
  _tile_dpbf16ps(0, 1, 2);
  _tile_stored(0, c, 64);
  _tile_release();
}
"""
ALONE = """
import ctypes, sys
tiles = (ctypes.create_string_buffer(1024) for _ in "cab")
ctypes.CDLL(sys.argv[1]).multiply(bytes.fromhex(sys.argv[2]), *tiles)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    source = tmp_path_factory.mktemp("amx") / "tiles.cpp"
    source.write_text(TILES)
    flags = ("-O1", "-mavx2", "-mfma", f"-include{AMX}")
    return NativeLibrary("amx_tiles", [Source(source)], headers=[AMX], flags=flags)


@pytest.fixture
def tiles(library):
    """Multiplies tiles of 16 rows of 64 bytes: c is fp32, a and b are the bits of bf16."""
    call = library.load().multiply

    def multiply(config, c, a, b):
        c = c.copy()
        call(*(array.ctypes.data_as(ctypes.c_void_p) for array in (config, c, a, b)))
        return c

    return multiply


def configured(m, n, pairs):
    """LDTILECFG's 64 bytes for sums of m by n, over so many pairs of k."""
    config = np.zeros(64, np.uint8)
    config[0] = 1
    config[16:22].view(np.uint16)[:] = 4 * n, 4 * pairs, 4 * n
    config[48:51] = m, m, pairs
    return config


def widened(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def drawn(seed):
    """Of widely different sizes, so that another order shows."""
    draw = np.random.default_rng(seed)
    numbers = draw.standard_normal((3, 16, 32)) * 2.0 ** draw.integers(-9, 9, (3, 16, 32))
    c, a, b = numbers.astype(np.float32)
    bits = [(x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b)]
    return c[:, :16].copy(), *bits


@pytest.mark.parametrize(("m", "n", "pairs"), [(16, 16, 16), (3, 5, 7), (1, 16, 16), (16, 1, 1)])
def test_sums_are_those_of_the_pseudo_code(tiles, m, n, pairs):
    c, a, b = drawn(m)
    found = tiles(configured(m, n, pairs), c, a, b)
    sums = np.zeros((m, 2 * n), np.float32)
    for k in range(pairs):  # products of bf16 are exact in fp32
        of_a = np.tile(widened(a)[:m, 2 * k : 2 * k + 2], n)
        sums += of_a * widened(b)[k, : 2 * n]
    want = c[:m, :n] + (sums[:, ::2] + sums[:, 1::2])
    assert np.array_equal(found[:m, :n].view(np.uint32), want.view(np.uint32))
    assert np.array_equal(found[m:], c[m:])
    assert np.array_equal(found[:, n:], c[:, n:])


def test_it_is_right_against_float64(tiles):
    c, a, b = drawn(0)
    found = tiles(configured(16, 16, 16), c, a, b)
    of_a, of_b = widened(a).astype(np.float64), widened(b).astype(np.float64)
    columns = of_b.reshape(16, 16, 2).transpose(0, 2, 1).reshape(32, 16)
    size = np.abs(c) + np.abs(of_a) @ np.abs(columns)
    additions = 18  # on the longest way: 16 of a half, the halves, what was there
    assert np.all(np.abs(found - (c + of_a @ columns)) <= gamma(torch.float32, additions) * size)


def test_subnormals_are_zeros_on_both_ways(tiles):
    config, tiny = configured(1, 1, 1), np.float32(2.0**-127)
    c, a, b = np.zeros((16, 16), np.float32), *np.zeros((2, 16, 32), np.uint16)
    c[0, 0] = tiny
    assert tiles(config, c, a, b)[0, 0] == 0
    c[0, 0], a[0, 0], b[0, 0] = 0, tiny.view(np.uint32) >> 16, 0x7F00  # 2^127
    assert tiles(config, c, a, b)[0, 0] == 0
    a[0, 0] = b[0, 0] = 0x2000  # 2^-63, whose product is normal
    assert tiles(config, c, a, b)[0, 0] == 2.0**-126
    b[0, 0] = 0x1F80  # 2^-64
    assert tiles(config, c, a, b)[0, 0] == 0


@pytest.mark.parametrize(
    ("byte", "value", "said"),
    [
        (0, 2, "no known palette"),
        (5, 1, "reserved bytes"),
        (16, 65, "larger than"),
        (48, 0, "rows or columns alone"),
        (49, 15, "sizes do not fit"),
        (0, 0, "not configured"),
    ],
)
def test_what_would_fault_aborts(library, byte, value, said):
    config = configured(16, 16, 16)
    config[byte] = value
    arguments = (library.build(), config.tobytes().hex())
    done = subprocess.run([sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True)
    assert done.returncode == -signal.SIGABRT
    assert said in done.stderr
