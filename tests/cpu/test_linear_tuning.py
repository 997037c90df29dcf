"""The knobs of the native linear: they change how it is cut into blocks, and no bit of it."""

import itertools
import json
from pathlib import Path

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


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_a_product_may_be_kept_on_one_thread(fresh):
    """OpenMP starts its threads when the first product is shared among them."""
    done = fresh(
        """
        import os, accel, torch

        chosen = accel.ops.explain("linear", device="cpu").chosen
        x, w = torch.empty(64, 512), torch.empty(512, 512)
        torch.set_num_threads(3)
        for threads in (1, 0):
            settings = {"threads": threads, "columns": 0}
            shapes = (tuple(x.shape), tuple(w.shape), None)
            chosen.builder.turn(chosen.impl, x.dtype, shapes, settings)
            before = len(os.listdir("/proc/self/task"))
            accel.ops.linear(x, w)
            print(len(os.listdir("/proc/self/task")) - before)
        """
    )
    assert done.stdout.split() == ["0", "2"]


def test_a_model_s_first_linear_is_tuned(monkeypatch, tmp_path):
    """On this machine's own kernel: settings of every length, kept for the next time."""
    monkeypatch.setenv("ACCEL_TUNING_TABLE", str(tmp_path / "table.json"))
    config = InferenceConfig(
        hidden_size=32, dtype=torch.float32, max_out_tokens=40, triton_autotune=True, layer_id=0
    )
    with accel.use_accelerator("cpu"):
        op, again = LinearOp(config), LinearOp(config)
        name = accel.get_accelerator().properties().name
    assert op.tuned.impl == "accel_cpu.native"
    assert len(op.tuned.settings) == 3
    assert "3 of 3 shapes were measured" in str(op.tuned)
    assert "0 of 3 shapes were measured" in str(again.tuned)
    assert again.tuned.settings == op.tuned.settings
    ((device, table),) = json.loads((tmp_path / "table.json").read_text()).items()
    assert device.startswith(name)
    assert list(table.values()) == list(op.tuned.settings.values())
