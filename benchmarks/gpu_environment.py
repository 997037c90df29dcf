"""What gpu_check.py runs with: what is installed, and the checkout as if it were."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
MEMBERS = ("accel", "accel_cpu", "accel_cuda", "accel_xpu", "conformance")


def installed() -> bool:
    """Whether all is there that the stages import; or says everything that is missing, at once.
    What is older than the project wants is told, and tried."""
    project = tomllib.loads((ROOT / "accel" / "pyproject.toml").read_text())["project"]
    missing = []
    for text in (*project["dependencies"], *project["optional-dependencies"]["hf"]):
        wanted = Requirement(text)
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            missing.append(text)
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            print(f"gpu_check: found {wanted.name} {found}, the project wants {text}: trying it")
    if missing:
        print(
            f"gpu_check: asked to run with {sys.executable}, found it without "
            f"{', '.join(missing)}; possible: install them, or put them on PYTHONPATH",
            file=sys.stderr,
        )
    return not missing


def environment(folder: Path, backend: str) -> dict[str, str]:
    """That of a process which finds the members' sources, and their entry points as if they were
    installed: one *.dist-info each, made of its pyproject.toml."""
    for member in MEMBERS:
        project = tomllib.loads((ROOT / member / "pyproject.toml").read_text())["project"]
        info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        about = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
        (info / "METADATA").write_text(about)
        lines = []
        for group, entries in project.get("entry-points", {}).items():
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    sources = [str(ROOT / member / "src") for member in MEMBERS]
    path = [str(folder), *sources, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(path), "ACCEL_BACKEND": backend,
        "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
