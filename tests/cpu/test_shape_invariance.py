"""accel_cpu.native: the row of a batch is the row alone, bit for bit."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from instruction_sets import DTYPES, ISAS, run

from accel import ops
from accel.contracts.quantized_linear import quantize

pytestmark = pytest.mark.usefixtures("_native")

ROWS = (1, 2, 3, 17, 33, 128, 257, 1024)
INNER = (64, 1000, 1024, 4096, 11008)
NATIVE = ";".join(
    f"{op}=accel_cpu.native" for op in ("linear", "gated_linear", "quantized_linear", "rms_norm")
)


def cancelling(rows, k, dtype, seed):
    """Rows whose sums nearly cancel, so that another order of summation shows."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(rows, k // 2, generator=generator) * 100
    x = torch.cat([half, -half], 1)[:, torch.randperm(k, generator=generator)]
    return (x + torch.randn(rows, k, generator=generator)).to(dtype)


def rows_differing(call, x):
    """How many rows of ``call`` on the first M rows differ from the row alone, over all M."""
    alone = torch.cat([call(row) for row in x.split(1)])
    differing = 0
    for m in ROWS:
        batch = call(x[:m])
        differing += int((batch.view(torch.uint8) != alone[:m].view(torch.uint8)).any(1).sum())
    return differing


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", INNER)
@pytest.mark.usefixtures("_threads")
def test_a_row_of_linear_does_not_depend_on_its_neighbours(k, dtype):
    n = 1031 if k == 4096 else 131  # over a million outputs at one K
    x, w = cancelling(1024, k, dtype, 0), cancelling(n, k, dtype, 1)
    b = torch.randn(n).to(dtype)
    assert rows_differing(lambda rows: ops.linear(rows, w, b), x) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("_threads")
def test_a_row_of_gated_linear_and_rms_norm_does_not_depend_on_its_neighbours(dtype):
    x, up = cancelling(1024, 1000, dtype, 0) / 100, cancelling(67, 1000, dtype, 2) / 3000
    gate = cancelling(67, 1000, dtype, 1) / 3000
    assert rows_differing(lambda rows: ops.gated_linear(rows, gate, up), x) == 0
    assert rows_differing(lambda rows: ops.rms_norm(rows, gate[0]), x) == 0


def test_the_check_can_fail():
    """torch's own product depends on the number of rows, and this check sees it."""
    x, w = cancelling(1024, 4096, torch.float32, 0), cancelling(131, 4096, torch.float32, 1)
    assert rows_differing(lambda rows: torch.nn.functional.linear(rows, w), x) > 0


@pytest.mark.parametrize("isa", ISAS)
def test_on_every_instruction_set_rows_are_invariant_and_right(isa):
    """In a process of its own: the instruction set is chosen once."""
    assert run(__file__, isa) == [isa, "0", "0", "0"]


def test_an_unknown_instruction_set_is_refused_by_name():
    environment = {**os.environ, "ACCEL_CPU_ISA": "avx5"}
    done = subprocess.run(
        [sys.executable, __file__, "avx5"], env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "avx5" in done.stderr
    assert "scalar" in done.stderr


def on_this_instruction_set():
    from instruction_sets import assert_samples_are_right

    from accel_cpu.plugin import accel_op_builders

    with torch.no_grad(), ops.use(NATIVE):
        ops.linear(torch.ones(1, 1), torch.ones(1, 1))
        print(torch.ops.accel_cpu_kernels.isa())
        for dtype in DTYPES:
            x, w = cancelling(1024, 100, dtype, 0), cancelling(33, 100, dtype, 1)
            differing = rows_differing(lambda rows, w=w: ops.linear(rows, w), x)
            for quantized, bits in ((quantize(w.float()), 8), (quantize(w.float(), 4, 50), 4)):
                call = partial(ops.quantized_linear, w=quantized[0], scales=quantized[1], bits=bits)
                differing += rows_differing(call, x)
            print(differing)
        for builder in accel_op_builders():
            for impl in builder.impls:
                if impl.id == "accel_cpu.native":
                    assert_samples_are_right(builder().load(impl), impl.op)


if __name__ == "__main__":
    on_this_instruction_set()
