"""What the tests of the kernels share: processes that take one instruction set, and oracles."""

import os
import re
import subprocess
import sys
from functools import cache

import pytest
import torch

from accel.contracts import CONTRACTS
from accel_conformance.measure import exact, shares
from accel_conformance.oracles import ORACLES

ISAS = ("amx_bf16", "avx512_bf16", "avx512", "avx2", "neon", "scalar")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CHOOSES = """
from accel_cpu.builders import LIBRARY
import torch
LIBRARY.load()
torch.ops.accel_cpu_kernels.isa()
"""


def _with(isa, *arguments):
    """Python with ``isa``: it is chosen once, so in a process of its own."""
    environment = {**os.environ, "ACCEL_CPU_ISA": isa}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@cache
def possible():
    """The instruction sets there are here, as the refusal of what is none lists them."""
    refused = _with("?", "-c", CHOOSES).stderr
    found = re.search("possible here: (.*)", refused)
    assert found, refused
    return found[1].split(", ")


def skip_without(isa):
    if isa not in possible():
        pytest.skip(f"this CPU has no {isa}, only {', '.join(possible())}")


def run(file, isa):
    """The lines ``file`` prints with ``isa``."""
    skip_without(isa)
    done = _with(isa, file, isa)
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
