"""What a library's cache does under a kill and a race, tried with processes of their own.

    rehearse(library)      # a build that is killed, two at once, one that comes later

A fresh process, which holds neither kernels nor threads nor a device, forks those that build, in a
cache that is empty. The compiler is watched: what is killed is a link half done, which took no
compiling to get to, and the race is the one real build.

This file is that process's program too.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accel import environment
from accel.native import NativeLibrary, toolchain
from accel.native.cache import TIMEOUT

TORN = "half a library"
START_LIMIT = 3.0  # seconds, for both of a race, where the second waits without a word
_TOLD = 500  # characters

_COMPILER = """\
#!/bin/sh
if [ -e "{folder}/tearing" ]; then
    for word; do [ "$before" = -o ] && printf '{torn}' > "$word"; before=$word; done
fi
echo "$BUILD $*" >> "{folder}/calls"
if [ -e "{folder}/tearing" ]; then
    case " $* " in *" -c "*) exit 0;; esac
    while [ -e "{folder}/tearing" ]; do "{sleep}" 0.02; done
    exit 1
fi
while [ -e "{folder}/closed" ]; do "{sleep}" 0.02; done
exec "{real}" "$@"
"""


class Compiler:
    """``real``, watched: it notes each call, with ``BUILD`` of its environment; waits while it is
    ``closed``; and while it is ``tearing`` writes half of what it is asked for, is done where that
    is an object file, and never where it is a library."""

    def __init__(self, folder: Path, real: str) -> None:
        self._folder = folder
        self.path = folder / "c++"
        text = _COMPILER.format(folder=folder, real=real, torn=TORN, sleep=shutil.which("sleep"))
        self.path.write_text(text)
        self.path.chmod(0o755)

    def calls(self) -> list[list[str]]:
        """The build and the arguments of each call."""
        return [line.split() for line in _text(self._folder / "calls").splitlines()]

    def compilations(self) -> int:
        return sum("-c" in call for call in self.calls())

    def links(self, *builds: str) -> list[str]:
        """Which of these builds came to link, once for each time."""
        return [build for build, *call in self.calls() if build in builds and "-c" not in call]

    @contextmanager
    def closed(self) -> Iterator[None]:
        with _present(self._folder / "closed"):
            yield

    @contextmanager
    def tearing(self) -> Iterator[None]:
        with _present(self._folder / "tearing"):
            yield


class Build:
    """A process, in a process group of its own, that loads the library and builds it first where
    it is not in the cache."""

    def __init__(self, library: NativeLibrary, name: str) -> None:
        self.name = name
        self._log = Path(tempfile.gettempdir(), f"{name}.log")
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=self._run, args=(library,))
        self._process.start()

    def _run(self, library: NativeLibrary) -> None:
        os.setpgid(0, 0)
        os.environ["BUILD"] = self.name
        with self._log.open("w") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())
        try:
            library.load()
        except Exception as error:
            sys.exit(f"{type(error).__name__}: {error}")

    def runs(self) -> bool:
        return self._process.is_alive()

    def said(self) -> str:
        return _text(self._log)

    def kill(self) -> None:
        if self.runs():
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.join()

    def failure(self) -> str:
        """When it has ended: what it says for not having got the library; empty if it has."""
        self._process.join(_limit())
        if self.runs():
            self.kill()
            return f"it did not end in {_limit():g} s (ACCEL_BUILD_TIMEOUT)"
        status = self._process.exitcode
        return f"status {status}, {self.said().strip()[-_TOLD:]}" if status else ""


def rehearse(library: NativeLibrary) -> list[str]:
    """What is wrong with how the library is built and kept, in sentences."""
    with tempfile.TemporaryDirectory(prefix="accel-") as folder:
        variables = {
            **os.environ, "TMPDIR": folder, "ACCEL_CACHE_DIR": str(Path(folder, "cache")),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name], input=pickle.dumps(library), env=variables,
            cwd=folder, capture_output=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"a process that builds {library.name} broke: {done.stderr.decode()}")
    found: list[str] = json.loads(done.stdout)
    return found


def _problems(library: NativeLibrary, compiler: Compiler) -> Iterator[str]:
    """A kill, a race and a third: what each shows."""
    with compiler.tearing():
        killed = Build(library, "killed")
        _until(lambda: compiler.links("killed") or not killed.runs(), _limit())
        killed.kill()
    if not compiler.links("killed"):
        yield f"it was not linked by CXX, so no build could be killed midway: {killed.said()}"
    if library.is_built():
        yield "what a killed build left passes for the library"
    with compiler.closed():
        racers = [Build(library, name) for name in ("one", "other")]
        _until(lambda: all(_under_way(racer, compiler) for racer in racers), START_LIMIT)
    for racer in racers:
        if failure := racer.failure():
            yield f"after a build that was killed, of two at once {racer.name} failed: {failure}"
    if len(links := compiler.links("one", "other")) > 1:
        yield f"two at once built it {len(links)} times: {', '.join(links)}"
    later = Build(library, "later")
    if failure := later.failure():
        yield f"a process that came after the two failed: {failure}"
    if compiler.links("later"):
        yield "a process that came after the two built it again"
    cache = Path(os.environ["ACCEL_CACHE_DIR"])
    for file in sorted(cache.rglob("*")):
        if file.is_file() and file.read_bytes() == TORN.encode():
            yield f"what the killed build wrote is left: {file.relative_to(cache)}"


def _under_way(build: Build, compiler: Compiler) -> bool:
    """Whether it compiles, waits for another that does, or has ended."""
    compiles = any(name == build.name for name, *_ in compiler.calls())
    return compiles or "waiting for another process" in build.said() or not build.runs()


def _limit() -> float:
    """How long a build may take, in seconds."""
    return environment.seconds("ACCEL_BUILD_TIMEOUT", TIMEOUT)


def _until(condition: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""


@contextmanager
def _present(file: Path) -> Iterator[None]:
    file.touch()
    try:
        yield
    finally:
        file.unlink()


def _main() -> None:
    library = pickle.load(sys.stdin.buffer)
    compiler = Compiler(Path(tempfile.gettempdir()), str(toolchain.compiler()))
    os.environ["CXX"] = str(compiler.path)
    print(json.dumps(list(_problems(library, compiler))))


if __name__ == "__main__":
    _main()
