"""Tiny libraries without a torch header, each built in a fraction of a second."""

import shutil
import textwrap

import pytest

from accel.native import NativeLibrary, Source, toolchain


def pytest_collection_modifyitems(items):
    missing = toolchain.refusals()
    for item in items:
        if missing and item.path.is_relative_to(__file__.rpartition("/")[0]):
            item.add_marker(pytest.mark.skip(reason="; ".join(map(str, missing))))


CODE = """
#include "number.h"
extern "C" __attribute__((visibility("default"))) int answer() { return NUMBER; }
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A build cache of this test's own, not there yet."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def tiny(tmp_path, cache):
    """``tiny(number=42)``: a library whose ``answer()`` is the number."""

    def make(name="tiny", *, number=42, code=CODE, folder=tmp_path / "sources", **settings):
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "tiny.cpp").write_text(textwrap.dedent(code))
        (folder / "number.h").write_text(f"#define NUMBER {number}\n")
        settings = {"headers": [folder / "number.h"], "flags": ("-O0",), **settings}
        return NativeLibrary(name, [Source(folder / "tiny.cpp")], libraries=(), **settings)

    return make


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that notes every call and, while ``closed``, waits for ``open``."""
    real = toolchain.compiler()

    class Compiler:
        path, log, gate = tmp_path / "c++", tmp_path / "calls", tmp_path / "gate"

        def calls(self):
            return self.log.read_text().count("call") if self.log.exists() else 0

        def compilations(self):
            return self.log.read_text().count(" -c ") if self.log.exists() else 0

        def close(self):
            self.gate.touch()

        def open(self):
            self.gate.unlink()

    made = Compiler()
    sleep = shutil.which("sleep")
    made.path.write_text(
        f'#!/bin/sh\necho "call $*" >> {made.log}\n'
        f'while [ -e {made.gate} ]; do {sleep} 0.02; done\nexec {real} "$@"\n'
    )
    made.path.chmod(0o755)
    monkeypatch.setenv("CXX", str(made.path))
    return made
