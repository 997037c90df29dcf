"""NEON on an emulated processor of its own, beside the portable kernels there; the tests of all
kernels run it emulated too (make test-emulated)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from agreement import assert_agree

from accel_cpu.builders import _ANY, _CSRC, _NEON, LIBRARY

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PROGRAM = Path(__file__).parent / "emulation/every_kernel.cpp"
FLAGS = ("-std=c++20", *LIBRARY.flags, *_NEON, f"-I{_CSRC}")
# Members that an initializer leaves out are zeros, as they are meant to be.
WARNINGS = ("-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Werror")


def call(*command, **environment):
    done = subprocess.run(
        [*map(str, command)], env={**os.environ, **environment}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


def needs(program):
    return pytest.mark.skipif(not shutil.which(program), reason=f"{program} is not installed")


@needs(COMPILER)
def test_the_kernels_compile_without_a_warning():
    call(COMPILER, *FLAGS, *WARNINGS, "-fsyntax-only", _CSRC / "neon.cpp")


def results(written):
    """(name, tensor, operations) of what the program wrote."""
    start = 0
    while start < len(written):
        end = written.index(b"\n", start)
        *name, dtype, operations, count = written[start:end].decode().split(" ")
        dtype = getattr(torch, dtype)
        start = end + 1 + int(count) * dtype.itemsize
        data = bytearray(written[end + 1 : start])
        yield " ".join(name), torch.frombuffer(data, dtype=dtype), int(operations)


@pytest.mark.slow
@needs(COMPILER)
@needs(EMULATOR)
def test_every_kernel_agrees_with_the_portable_one(tmp_path):
    program = tmp_path / "every_kernel"
    sources = [_CSRC / name for name in (*_ANY, "scalar.cpp", "neon.cpp")]
    call(COMPILER, *FLAGS, "-static", *sources, PROGRAM, "-o", program)
    found, want = (
        list(results(call(EMULATOR, program, ACCEL_CPU_ISA=isa))) for isa in ("neon", "scalar")
    )
    assert found
    for (name, one, operations), (_, other, _) in zip(found, want, strict=True):
        if operations == 0:
            assert torch.equal(one.nan_to_num(7), other.nan_to_num(7)), name
        half = one.dtype is not torch.float32  # rounded from fp32, perhaps either way
        assert_agree(one, other, 2 if half else 2 * operations)
