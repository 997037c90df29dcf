"""Tiny libraries without a torch header, each built in a fraction of a second."""

import textwrap

import pytest

from accel.native import NativeLibrary, Source, toolchain
from accel_conformance.rehearsal import Compiler


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
    """A compiler that notes every call."""
    made = Compiler(tmp_path, toolchain.compiler())
    monkeypatch.setenv("CXX", str(made.path))
    return made
