"""The compiler and ninja: what is there, what is missing, and running a build."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from accel import environment
from accel.errors import BuildError
from accel.refusal import Refusal

_STEP = re.compile(r"^\[(\d+)/(\d+)\]")
_TORCH = Path(torch.__file__).parent


@dataclass(frozen=True)
class Source:
    """One C++ file, with flags of its own; ``torch`` adds torch's headers (slow to compile)."""

    path: Path
    flags: tuple[str, ...] = ()
    torch: bool = False


def compiler() -> str | None:
    """The C++ compiler: ``CXX``, or the first of the usual names on the PATH."""
    named = os.environ.get("CXX", "").strip()
    if named:
        return shutil.which(named)
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def ninja() -> str | None:
    """The ninja program: on the PATH, or from the Python package of that name."""
    found = shutil.which("ninja")
    if found is None and (spec := importlib.util.find_spec("ninja")) and spec.origin:
        for folder in (Path(spec.origin).parent / "data" / "bin", Path(sys.executable).parent):
            found = found or shutil.which("ninja", path=str(folder))
    return found


def refusals() -> list[Refusal]:
    """What is missing for a build."""
    if sys.platform == "win32":
        have = "Windows, where accel does not compile"
        return [Refusal("compiler", "a POSIX toolchain", have, "use another implementation")]
    found = []
    if compiler() is None:
        named = os.environ.get("CXX")
        have = f"no program CXX={named!r}" if named else "none of c++, g++, clang++ on the PATH"
        found.append(Refusal("compiler", "a C++20 compiler", have, "install g++, or set CXX"))
    if ninja() is None:
        found.append(Refusal("compiler", "ninja", "none on the PATH", "pip install ninja"))
    return found


def user_flags() -> list[str]:
    """``ACCEL_CXXFLAGS``; not ``CXXFLAGS``, which environments set for all that they hold."""
    return environment.words("ACCEL_CXXFLAGS")


def flags(source: Source, common: Iterable[str]) -> list[str]:
    """The compiler's flags for one source."""
    listed = ["-std=c++20", "-fPIC", "-fvisibility=hidden", *common, *source.flags, *user_flags()]
    if source.torch:
        includes = (_TORCH / "include", _TORCH / "include/torch/csrc/api/include")
        listed += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
        listed += [f"-isystem{include}" for include in includes]
    return listed


def fingerprint() -> list[str]:
    """What a built library depends on besides its sources and flags."""
    abi = f"cxx11abi={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    return [torch.__version__, abi, sys.platform, platform.machine(), *user_flags()]


def build(
    folder: Path,
    output: str,
    sources: Iterable[Source],
    common: Iterable[str],
    libraries: Iterable[str],
    progress: Callable[[int, int], None],
) -> None:
    """Compile ``sources`` into ``folder/output``; BuildError carries the end of the log."""
    missing = refusals()
    if missing:
        raise BuildError(f"cannot build {output}: {'; '.join(map(str, missing))}")
    (folder / "build.ninja").write_text(_ninja_file(output, sources, common, libraries))
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    command = [str(ninja()), "-C", str(folder), "-j", str(jobs or 1)]
    log: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            log.append(line)
            if step := _STEP.match(line):
                progress(int(step[1]), int(step[2]))
    if process.returncode != 0:
        tail = "".join(log[-30:])
        raise BuildError(f"building {output} with {compiler()} failed:\n{tail}")


def _ninja_file(
    output: str, sources: Iterable[Source], common: Iterable[str], libraries: Iterable[str]
) -> str:
    common = list(common)
    link = [f"-L{_TORCH / 'lib'}", *(f"-l{library}" for library in libraries)]
    if sys.platform == "darwin":
        link += ["-undefined", "dynamic_lookup"]
    if "-fopenmp" in common:
        link.append("-fopenmp")
    link += user_flags()
    lines = [
        f"cxx = {_quote([str(compiler())])}",
        "rule compile",
        "  command = $cxx $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "rule link",
        "  command = $cxx -shared $in -o $out $flags",
    ]
    objects = []
    for index, source in enumerate(sources):
        objects.append(f"{index}_{source.path.stem}.o")
        lines.append(f"build {objects[-1]}: compile {_escape(str(source.path))}")
        lines.append(f"  flags = {_quote(flags(source, common))}")
    lines.append(f"build {output}: link {' '.join(objects)}")
    lines.append(f"  flags = {_quote(link)}")
    return "\n".join(lines) + "\n"


def _quote(arguments: Iterable[str]) -> str:
    """Arguments of a command, for ninja, which hands them to a shell."""
    return shlex.join(arguments).replace("$", "$$")


def _escape(text: str) -> str:
    """A path, for ninja, which quotes it for the shell itself."""
    return text.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
