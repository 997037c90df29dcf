"""What the processor can do at most, for ``accel bench``, measured by csrc/ceilings.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from accel import Ceiling, NativeLibrary, Source

_CSRC = Path(__file__).parent / "csrc"
# -ffp-contract=fast: a multiplication and an addition are to become one instruction here.
LIBRARY = NativeLibrary(
    "accel_cpu_ceilings",
    [Source(_CSRC / "ceilings.cpp")],
    headers=[_CSRC / "amx_registers.h"],
    flags=("-O3", "-ffp-contract=fast", "-pthread"),
)
READ = 256 << 20  # bytes
TRIES, TIMES = 7, 64  # a try is some 10 ms


def measure(dtypes: Sequence[torch.dtype]) -> Iterator[Ceiling]:
    """Memory read, and products of each dtype; nothing where the library cannot be had."""
    if LIBRARY.refusals():
        return
    api = LIBRARY.load()
    for name in ("means", "product", "read"):
        function = getattr(api, f"accel_cpu_ceiling_{name}")
        function.restype = ctypes.c_char_p if name == "means" else ctypes.c_double
    threads = torch.get_num_threads()
    yield Ceiling("read", _read(api, threads), f"loads of 64 bytes, {threads} threads")
    for dtype in dtypes:
        yield _product(api, dtype, threads)


def _read(api: ctypes.CDLL, threads: int) -> float:
    memory = torch.ones(READ // 8, dtype=torch.int64)
    place = ctypes.c_void_p(memory.data_ptr())
    return max(
        float(api.accel_cpu_ceiling_read(place, ctypes.c_int64(READ), threads))
        for _ in range(TRIES)
    )


def _product(api: ctypes.CDLL, dtype: torch.dtype, threads: int) -> Ceiling:
    """By the instruction for the dtype; where there is none, by that for fp32, to which kernels
    then widen."""
    own = dtype is torch.bfloat16 and api.accel_cpu_ceiling_means(1) is not None
    means = api.accel_cpu_ceiling_means(int(own)).decode()
    rate = max(float(api.accel_cpu_ceiling_product(int(own), threads, TIMES)) for _ in range(TRIES))
    if dtype is torch.float64:
        rate /= 2  # half the lanes
        means += ", at half fp32's rate"
    name = str(dtype).removeprefix("torch.")
    widened = "" if own or dtype in (torch.float32, torch.float64) else f", {name} widened to fp32"
    return Ceiling(name, rate, f"{means}{widened}, {threads} threads")
