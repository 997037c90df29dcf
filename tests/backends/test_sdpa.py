"""torch's attention as GPUs offer it: what it refuses, and by conformance what it computes."""

import pytest
import torch

import accel
from accel import testing
from accel.op_builder import Impl, OpBuilder, Request
from accel.torch_impls import sdpa
from accel_conformance.selection import Selection
from accel_conformance.session import prepare
from accel_conformance.subject import installed_too


class TransformerBuilder(OpBuilder):
    """On the host, as a GPU's builder has it."""

    device_type = testing.HOST
    impls = (Impl("attention", "elsewhere.sdpa", frozenset({torch.bfloat16, torch.float32}), 50),)

    def reasons(self, impl, request):
        return sdpa.reasons(request)

    def load(self, impl):
        return sdpa.KERNEL


def request(dtype=torch.float32, **options):
    plain = {"window": None, "softcap": None, "dropout": 0.0, "mask": False, "slopes": False}
    return Request("attention", torch.device("meta"), dtype, options={**plain, **options})


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"mask": True}, {"slopes": True}], ids=str)
def test_what_torchs_own_can_do_is_served(options):
    assert not sdpa.reasons(request(**options))


@pytest.mark.parametrize(("code", "options"), [
    ("softcap", {"softcap": 5.0}), ("dropout", {"dropout": 0.1}),
    ("slopes", {"slopes": True, "dtype": torch.bfloat16}),
])  # fmt: skip
def test_what_it_would_do_otherwise_is_refused(code, options):
    (refusal,) = sdpa.reasons(request(**options))
    assert refusal.code == code
    assert refusal.remedy


@pytest.mark.parametrize("package", ["accel_cuda", "accel_xpu"])
def test_gpus_rank_it_behind_their_kernels(package):
    builder = pytest.importorskip(f"{package}.builders").TransformerBuilder()
    triton, own = (impl for impl in builder.impls if impl.op == "attention")
    assert (triton.id, own.id) == (f"{package}.triton", f"{package}.sdpa")
    assert triton.priority > own.priority
    assert triton.shape_invariant
    assert not own.shape_invariant
    assert builder.load(own) is sdpa.KERNEL


def test_it_conforms_and_in_half_precision_the_gradient_is_torchs_own():
    plugin = testing.fake_backend("elsewhere", rank=-1, builders=[TransformerBuilder],
                                  accelerator="accel_cpu.accelerator:CpuAccelerator")  # fmt: skip
    with installed_too((plugin,)):
        chosen = Selection(["attention"], ["elsewhere.sdpa"], ["bfloat16"], level="smoke")
        session = prepare("elsewhere", chosen)
        areas = {"ops", "gradients", "special"}
        found = [session.run(case) for case in session.cases if case.area in areas]
    assert [result.outcome.value for result in found] == ["passed"] * len(areas)
    q, k, v = (torch.ones(3, 2, 4, dtype=torch.bfloat16) for _ in "qkv")
    spans = torch.tensor([[0, 3, 0, 3]])
    args = accel.contracts.CONTRACTS["attention"].bind((q, k, v, spans))
    assert sdpa.KERNEL.forward(*args)[2] is not None
