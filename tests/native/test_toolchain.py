"""The compiler and ninja: found, missing, failing, and handed any path and flag unharmed."""

import sys
from pathlib import Path

import pytest
import torch

from accel import ops, testing
from accel.errors import BuildError, FallbackWarning
from accel.native import NativeOpBuilder, toolchain
from accel.op_builder import Impl


@pytest.fixture
def nothing_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")


@pytest.fixture
def no_ninja(monkeypatch):
    def which(name, **where):
        return None if name == "ninja" else found(name, **where)

    found = toolchain.shutil.which
    monkeypatch.setattr(toolchain.shutil, "which", which)


def test_a_compiler_named_by_cxx_is_taken(compiler):
    assert toolchain.compiler() == str(compiler.path)


def test_without_a_compiler_there_is_a_reason_with_a_remedy(nothing_on_the_path):
    (reason, *_) = toolchain.refusals()
    assert str(reason) == (
        "[compiler] needs a C++20 compiler, found none of c++, g++, clang++ on the PATH "
        "(install g++, or set CXX)"
    )


def test_a_cxx_that_is_not_there_is_named(no_compiler):
    (reason,) = toolchain.refusals()
    assert reason.have == "no program CXX='no-such-compiler'"


def test_without_ninja_there_is_a_reason_with_a_remedy(no_ninja, tiny):
    (reason,) = tiny().refusals()
    assert (reason.code, reason.want, reason.remedy) == ("compiler", "ninja", "pip install ninja")


def test_ninja_may_come_from_the_python_package(tmp_path, monkeypatch):
    binary = tmp_path / "ninja" / "data" / "bin" / "ninja"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    (tmp_path / "ninja" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ninja", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert Path(toolchain.ninja()) == binary


def test_windows_is_told_that_nothing_compiles_there(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    (reason,) = toolchain.refusals()
    assert "Windows" in reason.have


@pytest.mark.usefixtures("no_compiler")
def test_a_build_without_a_compiler_is_refused(tiny):
    with pytest.raises(BuildError, match=r"cannot build libtiny\.so: \[compiler\] needs a C\+\+20"):
        tiny().build()


def test_a_library_that_is_built_needs_no_compiler(tiny, monkeypatch):
    tiny().build()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert tiny().refusals() == []
    assert tiny().load().answer() == 42


def test_a_compile_error_shows_the_end_of_the_log_and_leaves_nothing(tiny, cache):
    broken = tiny(code="int answer() { return missing_name; }")
    with pytest.raises(
        BuildError, match=r"(?s)building libtiny\.so with .*tiny\.cpp.*missing_name"
    ):
        broken.build()
    assert not [path for path in cache.iterdir() if path.is_dir()]
    assert tiny().load().answer() == 42


def test_a_compiler_that_cannot_be_run_is_a_build_error(tiny, compiler):
    compiler.path.write_text("#!/bin/sh\nexit 7\n")
    with pytest.raises(BuildError, match="failed"):
        tiny().build()


def test_a_library_that_cannot_be_loaded_says_so(tiny):
    library = tiny(code='extern "C" int gone(); extern "C" int answer() { return gone(); }')
    with pytest.raises(ImportError, match=r"was built and cannot be loaded: .*gone"):
        library.load()


def test_spaces_and_dollars_in_paths_and_flags_arrive(tiny, tmp_path, monkeypatch, compiler):
    folder = tmp_path / "a b $c:d"
    folder.mkdir()
    moved = compiler.path.rename(folder / "c++")
    monkeypatch.setenv("CXX", str(moved))
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(folder / "cache"))
    code = """
    #include "number.h"
    #include <cstring>
    extern "C" __attribute__((visibility("default"))) int answer() {
        return strcmp(TEXT, "a b $c") == 0 ? NUMBER : -1;
    }
    """
    library = tiny(code=code, folder=folder, flags=('-DTEXT="a b $c"', f"-I{folder}"))
    assert library.load().answer() == 42


def test_sources_of_one_name_in_two_folders_do_not_collide(tiny, tmp_path):
    first, second = tiny(folder=tmp_path / "one"), tiny(folder=tmp_path / "two")
    (tmp_path / "two" / "tiny.cpp").write_text("int other() { return 1; }")
    first.sources += second.sources
    assert first.load().answer() == 42


def test_only_sources_that_say_so_get_torch_s_headers():
    plain = toolchain.flags(toolchain.Source(Path("a.cpp"), ("-mfast",)), ["-O3"])
    with_torch = toolchain.flags(toolchain.Source(Path("a.cpp"), torch=True), ["-O3"])
    assert plain[-2:] == ["-O3", "-mfast"]
    assert not any("torch" in flag for flag in plain)
    assert any(flag.endswith("torch/include") for flag in with_torch)


# -- the builder over a library ----------------------------------------------------------------

F32 = frozenset({torch.float32})


@pytest.fixture
def native(tiny):
    """A builder whose library stands for one that registers its kernel with torch."""
    kernels = torch.library.Library("tiny_kernels", "FRAGMENT")
    kernels.define("linear_native(Tensor x, Tensor w, Tensor? b, str? a, ScalarType? o) -> Tensor")
    kernels.impl("linear_native", lambda x, w, *rest: x @ w.t(), "CompositeExplicitAutograd")

    class LinearBuilder(NativeOpBuilder):
        device_type = testing.HOST
        impls = (Impl("linear", "tiny.native", F32, priority=100, shape_invariant=True),)
        library = tiny()
        namespace = "tiny_kernels"

    yield LinearBuilder
    kernels._destroy()


X, W = torch.ones(2, 3), torch.ones(4, 3)


def test_a_native_kernel_is_built_and_serves_on_first_use(native):
    with testing.installed(testing.fake_backend(builders=[native])):
        assert ops.explain("linear").chosen.impl.id == "tiny.native"
        assert native().needs_build(), "explaining builds nothing"
        assert ops.linear(X, W).tolist() == [[3.0] * 4] * 2
        assert not native().needs_build()


def test_without_a_compiler_the_next_implementation_serves_and_says_so(native, no_compiler):
    with testing.installed(testing.fake_backend(builders=[native])), ops.use(exact=False):
        with pytest.warns(FallbackWarning, match=r"tiny\.native was refused: \[compiler\]"):
            ops.linear(X, W)
        assert ops.fallbacks() == {("linear", "torch"): 1}


def test_a_kernel_that_does_not_compile_is_passed_over_with_the_log(native, tiny):
    native.library = tiny(code="syntax error")
    with (
        testing.installed(testing.fake_backend(builders=[native])),
        ops.use(exact=False),
        pytest.warns(FallbackWarning, match=r"(?s)tiny\.native.*\[build\].*tiny\.cpp"),
    ):
        ops.linear(X, W)


def test_building_ahead_of_time_builds(native):
    native().build()
    assert native.library.is_built()
