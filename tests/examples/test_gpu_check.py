"""benchmarks/gpu_check.py: what it says without a GPU, and that its stages run, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(*arguments):
    """Its process, as on a machine where nothing of ours is on the path, and no GPU is seen."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | hidden
    command = [sys.executable, ROOT / "benchmarks" / "gpu_check.py", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_without_a_gpu_it_says_so(tmp_path):
    done = check("--out", tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for said in ("asked for backend 'cuda'", "found", "possible: run it where", "--rehearse"):
        assert said in done.stderr
    assert not list(tmp_path.iterdir())


def test_all_that_is_missing_is_said_at_once(tmp_path):
    """On a machine that nothing can be fetched to one learns once, not package by package."""
    hidden = "import importlib.metadata as m, runpy, sys; real = m.version\n"
    hidden += "def version(name):\n"
    hidden += "    if name in ('peft', 'platformdirs'): raise m.PackageNotFoundError(name)\n"
    hidden += "    return '5.17.0' if name == 'transformers' else real(name)\n"
    hidden += "m.version = version; sys.path.insert(0, sys.argv[1])\n"
    hidden += "import gpu_environment; sys.exit(0 if gpu_environment.installed() else 2)"
    done = subprocess.run(
        [sys.executable, "-c", hidden, ROOT / "benchmarks"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "found transformers 5.17.0, the project wants transformers>=" in done.stdout
    assert "without platformdirs>=4, peft>=" in done.stderr


@pytest.mark.slow
def test_every_stage_runs_to_its_end(tmp_path):
    done = check("--rehearse", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = tmp_path.iterdir()
    found = json.loads((results / "check.json").read_text())
    assert {stage["name"].partition(":")[0] for stage in found["stages"]} == {
        "conformance", "exactness", "decode", "linear", "layer", "logprob", "engine", "ops",
    }  # fmt: skip
    for stage in found["stages"]:
        assert stage["outcome"] == "done", stage
        assert stage["rows"], stage
        assert stage["good"], stage
    measured = {goal["what"]: goal["found"] for goal in found["goals"]}
    assert measured["ops that pass conformance, share"] == 1
    assert measured["policies that are exact, share"] == 1
    assert {"check.md", "linear.html", "layer.html", "logprob.html", "ops.html"} <= {
        file.name for file in results.iterdir()
    }
    assert (results / "conformance" / "linear" / "report.html").exists()
