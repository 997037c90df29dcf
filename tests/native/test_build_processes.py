"""Several processes and one cache: they never race, and a killed one leaves nothing behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

LOAD = """
import sys
from pathlib import Path
from accel.native import NativeLibrary, Source
folder = Path(sys.argv[1])
library = NativeLibrary("tiny", [Source(folder / "tiny.cpp")], headers=[folder / "number.h"],
                        flags=("-O0",), libraries=())
print(library.load().answer())
"""


def until(condition, what):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path, tiny):
    """Start a process that loads the tiny library; all are ended with the test."""
    tiny()  # writes the sources
    running = []

    def start():
        log = tmp_path / f"stderr-{len(running)}"
        process = subprocess.Popen(
            [sys.executable, "-c", LOAD, str(tmp_path / "sources")],
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            start_new_session=True,
        )
        process.said = log.read_text
        running.append(process)
        return process

    yield start
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_of_two_processes_one_builds_and_both_load(start, compiler, tiny, cache):
    compiler.close()
    first, second = start(), start()
    until(compiler.calls, "the build's start")
    until(lambda: "waiting for another" in first.said() + second.said(), "the other's wait")
    compiler.open()
    assert [first.communicate()[0], second.communicate()[0]] == ["42\n", "42\n"]
    assert compiler.compilations() == 1
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [tiny().entry.stem]


def test_a_killed_build_neither_blocks_the_next_nor_leaves_remains(start, compiler, tiny, cache):
    compiler.close()
    first = start()
    until(compiler.calls, "the build's start")
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert list(cache.glob("*.tmp-*")), "it was killed midway"
    compiler.open()
    second = start()
    assert second.communicate()[0] == "42\n"
    assert "waiting" not in second.said()
    until(lambda: not list(cache.glob("*.tmp-*")), "the removal of what the first left")
    assert tiny().entry.is_sound()
