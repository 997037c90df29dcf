"""IPEX where it is not installed, or is not the one for this torch: refused, and not imported."""

from importlib.util import find_spec

import pytest
import torch

from accel import ops

TORCH = ".".join(torch.__version__.split(".")[:2])
ABSENT = find_spec("intel_extension_for_pytorch") is None

# The reasons of both backends, with what is installed, and whether it was imported for them.
ASKED = """
    import sys, torch
    from accel import Request
    from accel_cpu import ipex
    from accel_xpu.ipex import TransformerBuilder

    on_host = Request("linear", torch.device("cpu"), torch.float32)
    builder = TransformerBuilder()
    for refused in ipex.reasons(on_host), builder.reasons(builder.impls[0], on_host):
        print(*(f"{r.code}: {r.have}" for r in refused))
    print("intel_extension_for_pytorch" in sys.modules)
"""


@pytest.fixture
def asked(fresh, tmp_path):
    """What the backends say of IPEX where its files say that it has this version."""

    def asked(version):
        facts = tmp_path / "intel_extension_for_pytorch.dist-info" / "METADATA"
        facts.parent.mkdir()
        facts.write_text(
            f"Metadata-Version: 2.1\nName: intel-extension-for-pytorch\nVersion: {version}\n"
        )
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        return fresh(code + "exec(sys.argv[1])", ASKED.replace("\n    ", "\n")).stdout.splitlines()

    return asked


@pytest.mark.skipif(not ABSENT, reason="it is installed")
def test_where_it_is_not_installed_that_is_the_reason():
    verdicts = {v.impl.id: v for v in ops.explain("linear", device="cpu").verdicts}
    (refusal,) = verdicts["accel_cpu.ipex"].refusals
    assert (refusal.code, refusal.have) == ("library", "not installed")
    assert "accel-cpu[ipex]" in refusal.remedy
    with ops.use("rms_norm=accel_cpu.ipex", exact=False):
        decision = ops.explain("rms_norm", device="cpu")
    assert decision.chosen is None
    assert "not installed" in str(decision)


def test_one_for_another_torch_is_refused(asked):
    refused = f"version: torch {torch.__version__} beside intel-extension-for-pytorch 1.13.0"
    assert asked("1.13.0") == [refused, refused, "False"]


def test_of_the_one_for_this_torch_each_backend_takes_its_own_build(asked):
    assert asked(f"{TORCH}.7") == ["", f"library: {TORCH}.7", "False"]


def test_the_build_for_gpus_is_the_gpus(asked):
    _, on_gpu, imported = asked(f"{TORCH}.10+xpu")
    assert on_gpu == ""
    assert imported == "False"


def test_what_serves_unasked_is_never_ipex():
    for op in ("linear", "rms_norm", "rotary"):
        with ops.use(exact=False):
            ranked = [v.impl.id for v in ops.explain(op, device="cpu").verdicts]
        assert ranked.index("torch") < ranked.index("accel_cpu.ipex") < len(ranked) - 1
