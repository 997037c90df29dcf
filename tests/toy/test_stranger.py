"""A stranger's backend, installed beside the others. Each test runs in a process of its own, since
a process has one private torch device for good."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(
        "toy" not in entry_points(group="accel.backends").names,
        reason="examples/accel_toy is not installed",
    ),
    pytest.mark.skipif(not hasattr(torch._C, "_acc"), reason="a torch older than such devices"),
]


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env={**os.environ, **environment}, timeout=300,
    )  # fmt: skip


def accel(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", "from accel.cli import main; main()", *arguments],
        capture_output=True, text=True, env={**os.environ, **environment}, timeout=300,
    )  # fmt: skip


def backends(**environment):
    facts = json.loads(accel("info", "--json", **environment).stdout)
    return {backend["name"]: backend for backend in facts["backends"]}


def test_it_appears_and_is_not_taken_unasked():
    found = backends()
    assert found["toy"]["state"] == "available"
    assert found["cpu"]["state"] == "chosen"


def test_it_is_taken_when_asked_for():
    code = "import accel; acc = accel.get_accelerator(); print(acc.name, acc.device())"
    assert python(code, ACCEL_BACKEND="toy").stdout.split() == ["toy", "toy:0"]


def test_its_own_kernel_serves_and_the_rest_is_served_by_torch():
    code = """
import accel
accel.set_accelerator("toy")
for op in ("linear", "rms_norm"):
    print(accel.ops.explain(op).chosen.impl.id)
"""
    assert python(code).stdout.split() == ["accel_toy.rowwise", "torch"]


ORDER = """
import accel, torch
accel.set_accelerator("toy")
acc = accel.get_accelerator()
made, used = acc.Stream(), acc.Stream()
done = acc.Event()
with acc.stream(made):
    x = torch.ones(4, 4, device=acc.device())
    w = torch.ones(2, 4, device=acc.device())
    y = accel.ops.linear(x, w)
    done.record()
with acc.stream(used):
    {wait}
    z = accel.ops.linear(y, w[:, :2])
used.synchronize()
with acc.stream(used):
    print(z.cpu().flatten().tolist()[0])
"""


def test_streams_order_work_where_they_are_told_to():
    told = python(ORDER.format(wait="used.wait_event(done)"))
    assert told.stdout.strip() == "8.0", told.stderr


def test_a_forgotten_wait_shows():
    forgotten = python(ORDER.format(wait="pass"))
    assert forgotten.stdout.strip() == "nan", forgotten.stderr


def test_it_conforms():
    done = accel("conform", "--backend", "toy", "--dtypes", "float32", "--ops", "linear")
    assert done.returncode == 0, done.stdout
    assert "accel_toy.rowwise" in done.stdout


@pytest.fixture
def broken_neighbour(tmp_path):
    """An installed distribution whose plugin raises when it is imported."""
    info = tmp_path / "accel_broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: accel-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[accel.backends]\nbroken = accel_broken\n")
    (tmp_path / "accel_broken.py").write_text("raise OSError('libbroken.so: not found')\n")
    return {"PYTHONPATH": str(tmp_path)}


def test_a_broken_plugin_beside_it_breaks_nothing_else(broken_neighbour):
    code = """
import accel, torch
accel.set_accelerator("toy")
x = torch.ones(2, 3, device="toy")
print(accel.ops.linear(x, x).cpu().sum().item())
"""
    done = python(code, **broken_neighbour)
    assert done.stdout.strip() == "12.0", done.stderr
    assert "libbroken.so: not found" in done.stderr


def test_a_broken_plugin_is_shown_with_its_traceback(broken_neighbour):
    found = backends(**broken_neighbour)
    assert found["broken"]["state"] == "refused"
    assert "raise OSError(" in found["broken"]["traceback"]
    assert found["toy"]["state"] == "available"
    assert "Traceback" in accel("info", **broken_neighbour).stdout
