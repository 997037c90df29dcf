"""The toy device is registered, counts its memory, draws its numbers, and outlives a fork.

Registering a device changes the process for good: run these tests in a pytest process of their own.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from accel_toy import dispatch, memory

toy = dispatch.register()
MIB = 1 << 20


def run_script(text: str) -> None:
    """Run `text` in a fresh process, which must succeed and say nothing."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=120, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- registration


def test_registering_again_changes_nothing():
    assert dispatch.refusal() is None
    assert dispatch.register() is toy is torch.get_device_module("toy")
    assert torch.accelerator.current_accelerator() == torch.device("toy")


def test_importing_does_not_register():
    run_script(
        "import torch; from accel_toy import dispatch\n"
        "assert dispatch.refusal() is None and not hasattr(torch, 'toy')"
    )


def test_a_torch_without_the_means_is_a_reason_to_refuse(monkeypatch):
    monkeypatch.delattr(torch._C, "_acc")
    assert "cannot register a device written in Python" in dispatch.refusal()


def test_another_private_device_is_a_reason_to_refuse():
    run_script(
        "import torch; torch.utils.rename_privateuse1_backend('other')\n"
        "from accel_toy import dispatch; assert \"'other' is registered\" in dispatch.refusal()"
    )


def test_there_is_one_device():
    assert toy.is_available()
    assert (toy.device_count(), toy.current_device()) == (1, 0)
    with toy.device("toy:0"), pytest.raises(RuntimeError, match="no device toy:1"):
        toy.set_device(1)
    with pytest.raises(RuntimeError, match="no device toy:1"):
        torch.ones(2, device="toy:1")


# --- memory


def test_memory_is_counted_to_the_byte():
    before = toy.memory_allocated()
    x = torch.empty(MIB, device="toy")
    y = x[10:].view(-1, 2).t()
    z = torch.empty(3, 5, dtype=torch.bfloat16, device="toy")
    assert toy.memory_allocated() - before == 4 * MIB + 30
    assert toy.mem_get_info() == (memory.TOTAL - toy.memory_allocated(), memory.TOTAL)
    del x
    assert toy.memory_allocated() - before == 4 * MIB + 30  # its view lives
    del y, z
    assert toy.memory_allocated() == before
    assert toy.max_memory_allocated() - before == 4 * MIB + 30
    assert toy.memory_stats()["allocated_bytes.all.current"] == before == toy.memory_reserved()
    assert (
        toy.memory_stats()["allocated_bytes.all.peak"]
        == before + 4 * MIB + 30
        == toy.max_memory_reserved()
    )
    toy.reset_peak_memory_stats()
    assert toy.max_memory_allocated() == before


def test_what_training_allocates_is_given_back():
    before = toy.memory_allocated()
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)).to("toy")
    model(torch.ones(4, 8, device="toy")).sum().backward()
    assert toy.memory_allocated() > before
    del model
    toy.synchronize()
    assert toy.memory_allocated() == before


def test_memory_runs_out():
    before = toy.memory_allocated()
    with pytest.raises(torch.OutOfMemoryError, match=rf"{memory.TOTAL + 4} bytes"):
        torch.empty(memory.TOTAL // 4 + 1, device="toy")
    assert toy.memory_allocated() == before
    assert torch.ones(2, device="toy").tolist() == [1, 1]


def test_fresh_memory_is_nan():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        assert torch.empty(5, dtype=dtype, device="toy").float().isnan().all()


# --- random numbers


def test_seeds_repeat_and_leave_the_cpu_alone():
    def draw():
        x = torch.rand(3, device="toy")
        return [
            *x.tolist(),
            *torch.randn(2, device="toy").tolist(),
            *torch.randperm(5, device="toy").tolist(),
        ]

    toy.manual_seed(3)
    cpu = torch.get_rng_state()
    first = draw()
    assert draw() != first
    assert torch.equal(torch.get_rng_state(), cpu)
    torch.manual_seed(3)  # seeds every device
    assert toy.initial_seed() == 3
    assert draw() == first


def test_random_numbers_belong_to_the_call_not_to_the_time_it_runs():
    def draw(finish):
        toy.manual_seed(1)
        side = toy.Stream()
        with toy.stream(side):
            x = torch.empty(4, device="toy").normal_()
        finish()
        y = F.dropout(torch.ones(64, device="toy"))
        toy.synchronize()
        return x.tolist() + y.tolist()

    assert draw(toy.synchronize) == draw(lambda: None)


def test_the_state_round_trips():
    state = toy.get_rng_state()
    first = torch.rand(4, device="toy")
    toy.set_rng_state(state, "toy:0")
    assert torch.equal(torch.rand(4, device="toy"), first)
    with torch.random.fork_rng(device_type="toy"):
        inside = torch.rand(4, device="toy")
    assert torch.equal(torch.rand(4, device="toy"), inside)
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(4, device="toy", generator=generator)
    assert torch.equal(x, torch.rand(4, device="toy", generator=generator.manual_seed(5)))


# --- processes

FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, in newer Pythons
import torch
from accel_toy import dispatch
def compute():
    x = torch.ones(512, 512, device="toy")
    return ((x @ x).sum() / 512**3).item()
{before}
child = os.fork()
if child == 0:
    {inside}
    os._exit(0 if compute() == 1 else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
{after}
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_a_device():
    run_script(
        FORK.format(
            before="",
            inside="dispatch.register()",
            after="dispatch.register(); assert compute() == 1",
        )
    )
    run_script(
        FORK.format(
            before="dispatch.register(); assert compute() == 1",
            inside="",
            after="assert compute() == 1",
        )
    )


def test_a_process_ends_well_with_tensors_alive_and_work_queued():
    run_script(
        "import torch; from accel_toy import dispatch; toy = dispatch.register()\n"
        "x = torch.ones(3, device='toy', requires_grad=True)\n"
        "class Cycle: pass\n"
        "cycle = Cycle(); cycle.self = cycle; cycle.kept = (x * 2).sum(); cycle.kept.backward()\n"
        "torch.kept = x + 1"
    )
