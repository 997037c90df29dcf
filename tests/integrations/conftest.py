"""Processes under torchrun, for what other people's libraries make of us."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "engine"))  # its models


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    monkeypatch.setenv("ACCEL_BACKEND", "cpu")


@pytest.fixture(scope="session")
def torchrun(build_cache):
    """``torchrun(script, *arguments)`` runs a script in two processes, one thread each, until
    ``seconds`` are over; returns what they said. It fails if one of them does."""

    def run(script, *arguments, seconds=400):
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            script, *arguments,
        ]  # fmt: skip
        settings = {
            **os.environ, "ACCEL_BACKEND": "cpu", "ACCEL_CACHE_DIR": str(build_cache),
            "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, sys.path)),
            "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        with subprocess.Popen(
            list(map(str, command)), env=settings, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as group:  # fmt: skip
            try:
                said, _ = group.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(group.pid, signal.SIGKILL)
                raise AssertionError(f"hangs: {group.communicate()[0]}") from None
        assert group.returncode == 0, said
        return said

    return run


@pytest.fixture(scope="session")
def of_ranks(torchrun, tmp_path_factory):
    """``of_ranks(name)``: what the two processes of a script of this folder have saved."""

    def run(name):
        folder = tmp_path_factory.mktemp(name)
        torchrun(HERE / f"{name}.py", folder)
        return [torch.load(folder / str(rank), weights_only=False) for rank in range(2)]

    return run
