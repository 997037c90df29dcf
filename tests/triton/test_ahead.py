"""Every kernel compiles to machine code without a GPU, and its products are of one kind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton, which compiles for GPUs alone")

from accel.triton_kernels import KERNELS

HERE = Path(__file__).parent
# The largest that a program may have, of the smallest GPU that takes the tuning.
SHARED = {"sm_80": 99, "sm_90": 227, "sm_100": 227, "gfx942": 64}

# Gradients, which need not be those of a row alone.
FREE = ("of_queries", "of_keys")


def script(name, cache, *arguments):
    """The lines of JSON that a script prints in a process that interprets nothing, its cache
    empty."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, HERE / name, *arguments],
        env={**clean, "TRITON_CACHE_DIR": str(cache)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def compiled(which, architectures, dtypes, cache):
    """What ahead.py compiled."""
    return script("ahead.py", cache, which, ",".join(architectures), ",".join(dtypes))


def judge(found):
    for made in found:
        assert made["bytes"]
        assert not made["tf32"], made
        assert made["shared"] <= SHARED[made["architecture"]] * 1024, made
        # One instruction for a block of 16 rows, never those for 64.
        if made["kernel"] in FREE:
            continue
        allowed = ("mma.sync.aligned.m16n8k16.row.col.f32.", "v_mfma_f32_16x16x")
        assert all(product.startswith(allowed) for product in made["products"]), made
    assert {made["op"] for made in found} <= set(KERNELS)


def test_every_kernel_compiles(tmp_path):
    """Its first sample, for Hopper, whose compiler has two kinds of products to choose from."""
    found = compiled("few", ["sm_90"], ["bfloat16"], tmp_path)
    judge(found)
    assert {made["op"] for made in found} == set(KERNELS)
    assert any(made["products"] for made in found)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED)
def test_every_kernel_compiles_for(architecture, tmp_path):
    found = compiled("all", [architecture], ["bfloat16"], tmp_path)
    found += compiled("both", [architecture], ["float32", "float16"], tmp_path)
    judge(found)
    assert {made["op"] for made in found} == set(KERNELS)
    if architecture.startswith("sm_"):
        assert not any(made["products"] for made in found if made["dtype"] == "float32")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED)
def test_the_largest_heads_fit(architecture, tmp_path):
    """In all that attention and its gradient launch: what the builders accept can be started."""
    found = compiled("heads", [architecture], ["float32", "bfloat16"], tmp_path)
    judge(found)
    assert {"attend", "of_queries", "of_keys"} <= {made["kernel"] for made in found}


SUMMED = {"attention", "add_norm", "rms_norm", "layer_norm", "softmax", "logprob"}


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SHARED)
def test_calls_that_must_agree_add_up_alike(architecture, tmp_path):
    """A prefill, a decode step with its splits apart, a head's tiles, and rows that lie as no
    others do."""
    calls = {}
    for op, variant, dtype, kernel, laid in script("sums.py", tmp_path, architecture):
        calls.setdefault((op, variant, dtype, kernel), []).append(laid)
    assert {op for op, *_ in calls} == {*SUMMED, "norm_linear"}
    for (op, *which), layouts in calls.items():
        assert len(layouts) > 1
        # Of norm_linear the tile differs from call to call, so that its order is written out.
        assert bool(layouts[0]) == (op in SUMMED)
        assert all(laid == layouts[0] for laid in layouts), (op, which)
