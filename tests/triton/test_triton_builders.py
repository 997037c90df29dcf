"""The builders of the Triton kernels: what they offer and refuse, on machines with no GPU too."""

import importlib.util

import pytest
import torch

from accel import Request
from accel.contracts import CONTRACTS
from accel.triton_kernels import KERNELS
from accel.triton_kernels.builders import TritonLinearBuilder, triton_impls
from accel_cuda import builders as cuda
from accel_xpu import builders as xpu

BUILDERS = {
    f"{module.__name__.partition('.')[0]}.{name}": getattr(module, name)
    for module in (cuda, xpu)
    for name in ("LinearBuilder", "TransformerBuilder", "TilingBuilder")
}


class Plain(TritonLinearBuilder):
    device_type = "mychip"
    impls = triton_impls("accel_mychip", "LinearBuilder")


def request(**options):
    options = {"act": None, "out_dtype": None, **options}
    return Request("linear", torch.device("meta"), torch.float32, options=options)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_builder_is_well_formed_and_offers_the_kernels_of_its_family(name):
    builder = BUILDERS[name]
    builder.check_definition()
    package, family = name.split(".")
    offered = {impl.op for impl in builder.impls if impl.id == f"{package}.triton"}
    assert offered == {op for op in KERNELS if CONTRACTS[op].family == family}
    assert all(impl.shape_invariant for impl in builder.impls if impl.id.endswith(".triton"))


def test_neither_plugins_nor_builders_import_triton(fresh):
    fresh("""
        import sys
        import accel_cuda.plugin, accel_xpu.plugin
        accel_cuda.plugin.accel_op_builders(), accel_xpu.plugin.accel_op_builders()
        assert "accel_cuda.builders" in sys.modules
        assert not [name for name in sys.modules if name.partition(".")[0] == "triton"]
    """)


def test_without_triton_its_kernels_are_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (refusal,) = Plain().reasons(Plain.impls[0], request())
    assert refusal.code == "triton"
    assert refusal.have == "none installed"


@pytest.mark.parametrize("name", ["accel_cuda.LinearBuilder", "accel_xpu.LinearBuilder"])
def test_torchs_own_product_refuses_what_it_would_round_twice(name):
    builder = BUILDERS[name]()
    (own,) = (impl for impl in builder.impls if not impl.id.endswith(".triton"))
    assert not own.shape_invariant
    assert not builder.reasons(own, request())
    assert builder.reasons(own, request(act="silu"))[0].code == "act"
    assert builder.reasons(own, request(out_dtype=torch.bfloat16))[0].code == "out_dtype"


def test_a_result_in_float64_is_refused():
    assert Plain().reasons(Plain.impls[0], request(out_dtype=torch.float64))[0].code == "out_dtype"


MOST = {torch.float32: 256, torch.bfloat16: 512, torch.float16: 512}


@pytest.mark.parametrize("dtype", MOST)
@pytest.mark.parametrize("module", [cuda, xpu], ids=["cuda", "xpu"])
def test_heads_too_large_are_refused_before_anything_is_chosen(module, dtype, monkeypatch):
    builder = module.TransformerBuilder()
    monkeypatch.setattr(module.TransformerBuilder, "compiler_refusals", lambda self: [])
    impls = {impl.op: impl for impl in builder.impls if impl.id.endswith(".triton")}

    def refused(op, **options):
        asked = Request(op, torch.device("meta"), dtype, options=options)
        return [refusal.code for refusal in builder.reasons(impls[op], asked)]

    for size, says in ((MOST[dtype], []), (MOST[dtype] + 1, ["head_size"])):
        assert refused("attention", head_size=size, value_size=8) == says
        assert refused("transformer_layer", hidden_size=4 * size, heads=4) == says
    assert refused("attention", head_size=64, value_size=MOST[dtype] + 1) == ["value_size"]
    assert not refused("attention", head_size=None)  # nobody said
