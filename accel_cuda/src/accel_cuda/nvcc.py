"""nvcc, CUDA's compiler: found, its version, the GPUs it compiles for, and a build with it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import torch

from accel import Refusal
from accel.errors import BuildError

# Code for each of these runs on all GPUs of its first number; the last one's PTX on newer ones.
ARCHITECTURES = ("80", "90", "100")


def find() -> Path | None:
    """nvcc in ``CUDA_HOME`` or ``CUDA_PATH``, on the PATH, of NVIDIA's Python packages, or where
    its installer puts it."""
    return next((place for place in _places() if place.is_file()), None)


def _places() -> Iterator[Path]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            yield Path(home) / "bin/nvcc"
    if found := shutil.which("nvcc"):
        yield Path(found)
    packages = importlib.util.find_spec("nvidia")
    for folder in packages.submodule_search_locations or () if packages else ():
        yield from sorted(Path(folder).glob("*/bin/nvcc"), reverse=True)
    yield Path("/usr/local/cuda/bin/nvcc")


@cache
def version(nvcc: Path) -> tuple[int, int]:
    """CUDA's version, ``(13, 0)``; BuildError if it does not say it."""
    found = re.search(r"release (\d+)\.(\d+)", _output(nvcc, "--version"))
    if found is None:
        raise BuildError(f"{nvcc} --version does not tell a release")
    return int(found[1]), int(found[2])


@cache
def architectures(nvcc: Path) -> tuple[str, ...]:
    """Of :data:`ARCHITECTURES` those that it compiles for."""
    known = re.findall(r"compute_(\w+)", _output(nvcc, "--list-gpu-arch"))
    return tuple(a for a in ARCHITECTURES if a in known)


def _output(nvcc: Path, question: str) -> str:
    try:
        done = subprocess.run([nvcc, question], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{nvcc} cannot be run: {error}") from error
    return done.stdout


def refusals() -> list[Refusal]:
    """What is missing for a build: nvcc, of torch's CUDA."""
    remedy = "use accel_cuda.triton"
    if torch.version.hip:
        return [Refusal("nvcc", "an NVIDIA GPU", "torch built for ROCm", remedy)]
    nvcc = find()
    if nvcc is None:
        have = "none in CUDA_HOME, on the PATH, of NVIDIA's packages or in /usr/local/cuda"
        remedy = "install the CUDA toolkit, or set CUDA_HOME to it"
        return [Refusal("nvcc", "nvcc, CUDA's compiler", have, remedy)]
    try:
        own = version(nvcc)
    except BuildError as error:
        return [Refusal("nvcc", "an nvcc that runs", str(error), "install the CUDA toolkit again")]
    wanted = (torch.version.cuda or str(own[0])).split(".")[0]
    if str(own[0]) != wanted:
        have = f"{nvcc} of CUDA {own[0]}.{own[1]}"
        remedy = "install that one, or set CUDA_HOME to it"
        return [Refusal("nvcc", f"nvcc of CUDA {wanted}, as torch's", have, remedy)]
    return []


def fingerprint() -> list[str]:
    """What a library depends on besides its sources and flags."""
    nvcc = find()
    if nvcc is None:
        return []
    return [f"cuda {version(nvcc)}", *architectures(nvcc)]


def build(output: Path, sources: Iterable[Path], flags: Iterable[str]) -> None:
    """Compile ``sources`` into the shared library ``output``; BuildError carries the log."""
    missing = refusals()
    nvcc = find()
    if missing or nvcc is None:
        raise BuildError(f"cannot build {output.name}: {'; '.join(map(str, missing))}")
    chosen = architectures(nvcc)
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in chosen]
    code += [f"-gencode=arch=compute_{a},code=compute_{a}" for a in chosen[-1:]]
    command = [nvcc, "-shared", "-Xcompiler", "-fPIC", "-o", output, *code, *flags, *sources]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
        raise BuildError(f"building {output.name} with {nvcc} failed:\n{tail}")
