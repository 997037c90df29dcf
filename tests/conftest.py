"""What all tests share: an environment of their own, and fresh processes."""

import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time

import pytest
import torch
import torch.multiprocessing as mp
from joining import and_leave

from accel.native import cache as native_cache

ENOUGH = 600  # seconds, for what processes do together
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


@pytest.fixture
def free_port():
    """One of this machine's that nobody listens at."""
    return _free_port()


def _free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@pytest.fixture(scope="session")
def in_processes(tmp_path_factory, build_cache):
    """``in_processes(work, count, *given)`` runs ``work(rank, port, folder, *given)`` in so many;
    returns folder. They are ended when they have not done so by themselves. It fails if one of them
    does, unless they are ``mortal``."""

    def run(work, count, *given, mortal=False):
        folder, port = tmp_path_factory.mktemp("processes"), _free_port()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ACCEL_BACKEND", "cpu")
            patch.setenv("ACCEL_CACHE_DIR", str(build_cache))
            given = (work, port, folder, *given)
            processes = mp.spawn(and_leave, given, nprocs=count, join=False)
        until = time.monotonic() + ENOUGH
        try:
            while not (_all_ended(processes) if mortal else processes.join(timeout=1)):
                assert time.monotonic() < until, f"processes still run after {ENOUGH} seconds"
        finally:
            for process in processes.processes:
                process.kill()
        return folder

    return run


def _all_ended(processes):
    """Once it is so, or after a second; join() would end the others with the first."""
    for process in processes.processes:
        process.join(timeout=1 / len(processes.processes))
    return not any(process.is_alive() for process in processes.processes)


@pytest.fixture(scope="session")
def in_two_processes(in_processes):
    """``in_two_processes(work)`` runs ``work(rank, port, folder)`` in two; returns folder."""
    return lambda work: in_processes(work, 2)
