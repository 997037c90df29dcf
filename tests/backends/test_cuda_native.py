"""CUDA C++: nvcc found and refused, its library built, and the kernel's arithmetic on the host."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from accel import testing
from accel.errors import BuildError
from accel.op_builder import Impl
from accel_conformance.selection import Selection
from accel_conformance.session import prepare
from accel_conformance.subject import installed_too
from accel_cuda import native, nvcc, plugin
from accel_cuda.native import LIBRARY, RmsNorm

NVCC = nvcc.find()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")
HOST = torch.device(testing.HOST)
THREADS = Path(__file__).parent / "emulation/cuda_threads.h"


@pytest.fixture
def an_nvcc(tmp_path, monkeypatch):
    """Put a program in nvcc's place that says it is of a release."""

    def put(release):
        program = tmp_path / release / "bin/nvcc"
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\necho 'release {release}, V{release}.1'\n")
        program.chmod(0o755)
        monkeypatch.setenv("CUDA_HOME", str(program.parents[1]))
        return program

    return put


def test_nvcc_of_cuda_home_is_taken(an_nvcc):
    program = an_nvcc("12.4")
    assert nvcc.find() == program
    assert nvcc.version(program) == (12, 4)


def test_without_nvcc_there_is_a_reason_with_a_remedy(monkeypatch):
    monkeypatch.setattr(nvcc, "_places", lambda: iter([Path("/nowhere/nvcc")]))
    (refusal,) = LIBRARY.refusals()
    assert (refusal.code, refusal.want) == ("nvcc", "nvcc, CUDA's compiler")
    builder = native.TransformerBuilder()
    assert not builder.needs_build()
    builder.build()  # nothing, as nothing needs it
    with pytest.raises(BuildError, match="install the CUDA toolkit"):
        nvcc.build(Path("lib.so"), [], [])


@pytest.mark.parametrize(("release", "refused"), [("12.9", True), ("13.2", False)])
def test_an_nvcc_of_another_cuda_than_torchs_is_refused(an_nvcc, monkeypatch, release, refused):
    program = an_nvcc(release)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = [(r.want, r.have) for r in nvcc.refusals()]
    want = ("nvcc of CUDA 13, as torch's", f"{program} of CUDA {release}")
    assert found == ([want] if refused else [])


def test_an_nvcc_that_cannot_be_run_is_refused(an_nvcc):
    an_nvcc("13.1").write_text("no program")
    (refusal,) = nvcc.refusals()
    assert "cannot be run" in refusal.have or "does not tell" in refusal.have


def test_torch_for_amd_has_no_use_for_it(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert nvcc.refusals()[0].have == "torch built for ROCm"


def test_the_plugin_offers_it_below_triton():
    classes = plugin.accel_op_builders()
    (own,) = (c for c in classes if c is native.TransformerBuilder)
    others = [i for c in classes for i in c.impls if i.id == "accel_cuda.triton"]
    assert own.impls[0].shape_invariant
    assert all(own.impls[0].priority < impl.priority for impl in others)


@needs_nvcc
def test_it_builds_and_without_a_driver_says_so(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    kernel = RmsNorm(LIBRARY.load(), lambda x: None)
    assert LIBRARY.is_built()
    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    with pytest.raises(RuntimeError, match=r"rms_norm: CUDA error .*driver"):
        kernel(torch.ones(2, 3), None, 1e-6)


@needs_nvcc
def test_a_source_that_does_not_compile_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    (tmp_path / "wrong.cu").write_text("int f( {")
    with pytest.raises(BuildError, match=r"wrong\.cu"):
        nvcc.build(tmp_path / "lib.so", [tmp_path / "wrong.cu"], [])


@pytest.fixture(scope="module")
def on_the_host(tmp_path_factory):
    """The kernel compiled for the host, a block's threads as threads."""
    headers = NVCC and next(
        (p / "include" for p in NVCC.resolve().parents if (p / "include/cuda_bf16.h").exists()),
        Path("/usr/local/cuda/include"),
    )
    compiler = shutil.which("g++")
    if not headers or not (headers / "cuda_bf16.h").exists() or compiler is None:
        pytest.skip("needs g++ and CUDA's headers")
    library = tmp_path_factory.mktemp("cuda") / "lib.so"
    (source,) = (s.path for s in LIBRARY.sources)
    # By its own names first: a torch for CUDA has brought the runtime's into the process.
    command = [compiler, "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-ffp-contract=off",
               "-Wl,-Bsymbolic", "-pthread", f"-I{headers}", "-include", THREADS, "-x", "c++",
               source, "-o", library]  # fmt: skip
    subprocess.run(command, check=True)
    return RmsNorm(ctypes.CDLL(str(library)), lambda x: None)


def test_the_kernel_conforms_on_the_host(on_the_host):
    """In samples of few rows, as each starts threads."""
    dtypes = native.TransformerBuilder.impls[0].dtypes
    builder = testing.fake_builder(
        {"rms_norm": on_the_host}, id="emulated.native", family="TransformerBuilder", dtypes=dtypes
    )
    assert builder.impls == (Impl("rms_norm", "emulated.native", dtypes, 1000, True),)
    backend = testing.fake_backend(
        "emulated", rank=-1, builders=[builder], accelerator="accel_cpu.accelerator:CpuAccelerator"
    )
    samples = ("odd", "no_weight", "long", "large_eps", "layout_transposed", "layout_expanded")
    given = [f"ops/*/float32/{name}" for name in samples]
    given += ["ops/*/bfloat16/odd", "ops/*/float16/odd", "bad_inputs/*"]
    with installed_too((backend,)):
        session = prepare("emulated", Selection(["rms_norm"], ["emulated.native"], cases=given))
        results = [session.run(case) for case in session.cases]
    assert not [result.message() for result in results if result.outcome.bad]
    assert [result for result in results if result.outcome.value == "passed"]


def test_a_row_has_the_bits_it_has_alone(on_the_host):
    x = torch.randn(5, 700, generator=torch.Generator().manual_seed(0))
    whole = on_the_host(x, None, 1e-6)
    for i, row in enumerate(x):
        assert torch.equal(on_the_host(row, None, 1e-6), whole[i])
