"""What dropout leaves, in a kernel: :mod:`accel.contracts.random`, bit for bit."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mixed(z):
    """The finaliser of SplitMix64, of uint64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


@triton.jit
def kept(seed, row, column, least):
    """Which elements are left, of a seed, int64 rows and columns that broadcast; ``least`` is
    round(p * 2**32). Of each 64 bits the lower half decides the even column."""
    gamma = tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    state = mixed(mixed(seed.to(tl.uint64)) + row.to(tl.uint64) * gamma)
    pair = (column // 2 + 1).to(tl.uint64)
    bits = mixed(state + pair * gamma)
    half = tl.where(column % 2 == 0, bits & 0xFFFFFFFF, bits >> 32)
    return half >= tl.cast(least, tl.uint64)  # 1 is a constant of the compiler's
