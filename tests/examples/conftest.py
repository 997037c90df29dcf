"""The examples as scripts, in a process of their own, and as modules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def script(build_cache):
    """``script(name, *arguments)``: what it printed; fails unless its exit status is ``status``."""

    def run(name, *arguments, status=0):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
            env={**os.environ, "ACCEL_BACKEND": "cpu", "ACCEL_CACHE_DIR": str(build_cache)},
            capture_output=True, encoding="utf-8", timeout=120,
        )  # fmt: skip
        assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def example(monkeypatch):
    """``example(name)``: the module, to call parts of it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return __import__
