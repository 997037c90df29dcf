"""What the tests of the kernels share: processes that take one instruction set, and oracles."""

import os
import subprocess
import sys

import pytest
import torch

from accel.contracts import CONTRACTS
from accel_conformance.measure import exact, shares
from accel_conformance.oracles import ORACLES

ISAS = ("amx_bf16", "avx512_bf16", "avx512", "avx2", "scalar")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


_lacking = set()


def run(file, isa):
    """The lines ``file`` prints with ``isa``: it is chosen once, so in a process of its own."""
    if isa in _lacking:
        pytest.skip(f"this CPU lacks {isa}")
    done = subprocess.run(
        [sys.executable, file, isa],
        env={**os.environ, "ACCEL_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )
    if "this CPU lacks" in done.stderr:
        _lacking.add(isa)
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def assert_samples_are_right(kernel, name):
    """Every sample of the contract, in every dtype, against float64."""
    contract = CONTRACTS[name]
    for dtype in DTYPES:
        for sample in contract.samples():
            args = sample.make(dtype, torch.device("cpu"))
            found, want = kernel(*args), ORACLES[name].value(*map(exact, args))
            results = ((found, want),) if contract.result_count == 1 else zip(found, want)
            for result, expected in results:
                used = shares(result, expected, contract.tolerance[result.dtype])
                assert used.within, (name, sample.name, dtype, str(used))


def randn(*shape, dtype=torch.float32, seed=0):
    """Drawn in fp32, then rounded: the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def same_bits(a, b):
    return a.shape == b.shape and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )
