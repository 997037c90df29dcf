"""What all tests share: an environment of their own, and fresh processes."""

import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from functools import partial

import pytest
import torch
import torch.multiprocessing as mp

from accel.native import cache as native_cache

# What says whose kernels are tested.
KERNELS = ("ACCEL_CXXFLAGS", "ACCEL_CPU_ISA")


@pytest.fixture(scope="session")
def build_cache(tmp_path_factory):
    """The tests' own, with a copy of what was compiled before: half a minute of two cores."""
    cache = tmp_path_factory.mktemp("accel-cache")
    if native_cache.folder().is_dir():
        shutil.copytree(native_cache.folder(), cache, dirs_exist_ok=True)
    return cache


@pytest.fixture(autouse=True)
def _clean_environment(build_cache, monkeypatch):
    """No variable from outside decides a test, and nothing is built into the user's cache."""
    for name in list(os.environ):
        if name.startswith("ACCEL_") and name not in KERNELS:
            monkeypatch.delenv(name)
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(build_cache))


@pytest.fixture(autouse=True)
def _thread_count():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fresh():
    """Run code in a new process; returns what it did. It fails if the process does."""

    def run(code, *arguments, status=0, **environment):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def in_processes(tmp_path_factory, build_cache):
    """``in_processes(count, work, *given, mortal=False)`` runs ``work(rank, port, folder, *given)``
    in as many; returns folder. The test fails if a process does, unless it may, or takes longer
    than two minutes, after which none is left."""

    def run(count, work, *given, mortal=False):
        folder = tmp_path_factory.mktemp("processes")
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ACCEL_BACKEND", "cpu")
            patch.setenv("ACCEL_CACHE_DIR", str(build_cache))
            started = mp.spawn(work, (port, folder, *given), nprocs=count, join=False)
            try:
                _wait_for(started, mortal)
            finally:
                for process in started.processes:
                    process.kill()
        return folder

    return run


def _wait_for(started, mortal, seconds=120):
    until = time.monotonic() + seconds
    if mortal:  # join() would end the others when one does
        for process in started.processes:
            process.join(max(until - time.monotonic(), 0))
        assert not any(p.is_alive() for p in started.processes), "a process hangs"
        return
    while not started.join(1):
        assert time.monotonic() < until, "a process hangs"


@pytest.fixture(scope="session")
def in_two_processes(in_processes):
    """``in_two_processes(work)`` runs ``work(rank, port, folder)`` in two; returns folder."""
    return partial(in_processes, 2)
