"""Every kernel compiles to machine code without a GPU, and its products are of one kind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton, which compiles for GPUs alone")

from accel.triton_kernels import KERNELS

SCRIPT = Path(__file__).parent / "ahead.py"
# The largest that a program may have, of the smallest GPU that takes the tuning.
SHARED = {"sm_80": 99, "sm_90": 227, "sm_100": 227, "gfx942": 64}


def compiled(which, architectures, dtypes, cache):
    """What ahead.py compiled, in a process that interprets nothing and with an empty cache."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, SCRIPT, which, ",".join(architectures), ",".join(dtypes)],
        env={**clean, "TRITON_CACHE_DIR": str(cache)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def judge(found):
    for made in found:
        assert made["bytes"]
        assert not made["tf32"], made
        assert made["shared"] <= SHARED[made["architecture"]] * 1024, made
        # One instruction for a block of 16 rows, never those for 64.
        allowed = ("mma.sync.aligned.m16n8k16.row.col.f32.", "v_mfma_f32_16x16x")
        assert all(product.startswith(allowed) for product in made["products"]), made
    assert {made["op"] for made in found} == set(KERNELS)


def test_every_kernel_compiles(tmp_path):
    """Its first sample, for Hopper, whose compiler has two kinds of products to choose from."""
    found = compiled("few", ["sm_90"], ["bfloat16"], tmp_path)
    judge(found)
    assert any(made["products"] for made in found)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED)
def test_every_kernel_compiles_for(architecture, tmp_path):
    found = compiled("all", [architecture], ["bfloat16"], tmp_path)
    found += compiled("both", [architecture], ["float32", "float16"], tmp_path)
    judge(found)
    if architecture.startswith("sm_"):
        assert not any(made["products"] for made in found if made["dtype"] == "float32")
