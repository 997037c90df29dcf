"""What accel_cpu brings to accel bench: ceilings of the processor, and other libraries for it."""

import pytest
import torch

import accel
from accel.bench import cases, contest, judging
from accel_cpu import ceilings

HALF = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture
def accelerator():
    with accel.use_accelerator("cpu") as found:
        yield found


@pytest.fixture
def few(monkeypatch):
    for name, value in {"READ": 1 << 20, "TRIES": 1, "TIMES": 1}.items():
        monkeypatch.setattr(ceilings, name, value)


def test_ceilings_are_of_memory_and_of_every_dtype(accelerator, few):
    read, *products = accelerator.ceilings(HALF)
    assert read.what == "read"
    assert [p.what for p in products] == ["float32", "bfloat16", "float16", "float64"]
    assert all(c.rate > 0 for c in (read, *products))
    threads = f"{torch.get_num_threads()} threads"
    assert all(threads in c.method for c in (read, *products))
    assert "float16 widened to fp32" in products[2].method


def test_without_a_compiler_there_are_none(accelerator, few, monkeypatch):
    refusal = accel.Refusal("compiler", "a C++ compiler", "none")
    monkeypatch.setattr(type(ceilings.LIBRARY), "refusals", lambda self: [refusal])
    assert accelerator.ceilings(HALF) == ()


@pytest.mark.parametrize(
    ("op", "size", "dtype", "peers"),
    [
        ("linear", "tiny", torch.float32, {"oneDNN, packed"}),
        pytest.param(
            *("grouped_linear", "tiny", torch.bfloat16, {"torch _grouped_mm"}),
            marks=pytest.mark.skipif(torch.__version__ < "2.13", reason="2.8 has none for a CPU"),
        ),
        ("quantized_linear", "tiny", torch.float32, {"torch int8pack_mm", "torch int4pack_mm"}),
        ("quantized_linear", "tiny", torch.bfloat16, {"torch int8pack_mm", "torch int4pack_mm"}),
    ],
)
def test_peers_compute_what_the_contract_says(accelerator, op, size, dtype, peers):
    passed, refused = set(), []
    for case in cases.cases([op], [size]):
        found = contest.contest(case, dtype, accelerator)
        checks, why = judging.checked(found, case.tolerance(dtype), accelerator)
        passed |= set(checks)
        refused += [r.name for r in why if "computes something else" in r.reason]
    assert peers <= passed
    assert not refused


def test_peers_that_only_infer_are_not_asked_for_gradients(accelerator):
    (case, *_) = cases.cases(["linear"], ["tiny"])
    found = contest.contest(case.with_backward(), torch.float32, accelerator)
    (why,) = (r.reason for r in found.refused if r.name == "oneDNN, packed")
    assert why == "[grad] needs a forward alone, found one with its gradient (leave --backward out)"
