"""The knobs of the native linear: they change how it is cut into blocks, and no bit of it."""

import itertools
import json

import pytest
import torch

import accel
from accel.layers.inference import InferenceConfig, LinearOp

HOST = torch.device(accel.testing.HOST)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def linear():
    """(implementation, builder)"""
    chosen = accel.ops.explain("linear", device=HOST).chosen
    assert chosen.impl.id == "accel_cpu.native"
    return chosen.impl, chosen.builder


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [False, True], ids=["by_rows", "by_columns"])
def test_no_setting_changes_a_bit(linear, dtype, columns):
    impl, builder = linear
    torch.set_num_threads(2)
    x, w = torch.randn(67, 520).to(dtype), torch.randn(300, 520).to(dtype)
    w = w.t().contiguous().t() if columns else w
    want = accel.ops.linear(x, w)
    knobs = builder.knobs(impl)
    for values in itertools.product(*(knob.values for knob in knobs)):
        settings = dict(zip((knob.name for knob in knobs), values))
        builder.turn(impl, dtype, ((67, 520), (300, 520), None), settings)
        assert torch.equal(accel.ops.linear(x, w), want), settings


def test_a_model_s_first_linear_is_tuned(monkeypatch, tmp_path):
    """On this machine's own kernel: settings of every length, kept for the next process."""
    monkeypatch.setenv("ACCEL_TUNING_TABLE", str(tmp_path / "table.json"))
    config = InferenceConfig(
        hidden_size=32, dtype=torch.float32, max_out_tokens=40, triton_autotune=True, layer_id=0
    )
    op, again = LinearOp(config), LinearOp(config)
    assert op.tuned.impl == "accel_cpu.native"
    assert len(op.tuned.settings) == 3
    assert "3 of 3 shapes were measured" in str(op.tuned)
    assert "0 of 3 shapes were measured" in str(again.tuned)
    assert again.tuned.settings == op.tuned.settings
    ((device, table),) = json.loads((tmp_path / "table.json").read_text()).items()
    assert accel.get_accelerator().properties().name in device
    assert list(table.values()) == list(op.tuned.settings.values())
