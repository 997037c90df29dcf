"""Processes under torchrun, for what other people's libraries make of us."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "engine"))  # its models


@pytest.fixture(autouse=True)
def _cpu(monkeypatch):
    monkeypatch.setenv("ACCEL_BACKEND", "cpu")


@pytest.fixture(scope="session")
def torchrun(tmp_path_factory, build_cache):
    """``torchrun(script, *arguments)`` runs a script of this folder in two processes, one thread
    each, until ``seconds`` are over, and returns the folder that it was given first."""

    def run(script, *arguments, processes=2, seconds=240, **environment):
        folder = tmp_path_factory.mktemp(script)
        beside = [HERE, *sys.path]
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={processes}", HERE / f"{script}.py", folder, *arguments,
        ]  # fmt: skip
        settings = {
            **os.environ, "ACCEL_BACKEND": "cpu", "ACCEL_CACHE_DIR": str(build_cache),
            "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, beside)),
            "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false", **environment,
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
        return folder

    return run
