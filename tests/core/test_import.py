"""Importing accel is free of effects and cheap; choosing an accelerator starts nothing either."""

import json
from importlib.metadata import entry_points

import pytest

WATCHED = """
import json, os, sys, time
import torch

before = dict(os.environ), set(sys.modules)
started = []
sys.addaudithook(
    lambda event, args: started.append(event)
    if event in ("subprocess.Popen", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn",
                 "os.system", "_thread.start_new_thread")
    else None
)
start = time.perf_counter()
import accel
took = time.perf_counter() - start
BODY
report = {
    "took": took,
    "started": started,
    "environment": sorted({*os.environ.items()} ^ {*before[0].items()}),
    "loaded": sorted(set(sys.modules) - before[1]),
}
print("REPORT" + json.dumps(report))
"""

# For people and for compilers, or somebody else's device: none of it to import a library.
LATER = (
    "rich", "typer", "click", "transformers", "peft", "triton", "filelock", "platformdirs",
    "pytest", "accel_cpu", "accel_cuda", "accel_xpu", "accel_toy", "accel_conformance",
)  # fmt: skip

SERVE = """
from accel import testing
with testing.installed(testing.fake_backend()), accel.ops.use(exact=False):
    accel.get_accelerator()
    accel.ops.linear(torch.ones(2, 3), torch.ones(4, 3))
"""


def watched(fresh, body=""):
    done = fresh(WATCHED.replace("BODY", body))
    printed, _, report = done.stdout.partition("REPORT")
    return {"printed": printed + done.stderr, **json.loads(report)}


def loaded(report):
    return {name.partition(".")[0] for name in report["loaded"]}


@pytest.fixture(scope="module")
def imports(fresh):
    return [watched(fresh) for _ in range(5)]


@pytest.mark.parametrize("effect", ["printed", "started", "environment"])
def test_importing_accel_has_no_effect(imports, effect):
    assert not imports[0][effect]


def test_importing_accel_loads_nothing_that_is_needed_later(imports):
    assert "accel" in loaded(imports[0])
    assert loaded(imports[0]).isdisjoint(LATER)


def test_importing_the_engine_loads_no_library_of_models(fresh):
    report = watched(fresh, "import accel.engine; accel.HybridEngine, accel.hybridize")
    assert "accel.engine.policies" in report["loaded"]
    assert loaded(report).isdisjoint({"transformers", "peft", "huggingface_hub", "deepspeed"})


def test_importing_accel_takes_at_most_50_ms_more_than_torch(imports):
    times = [report["took"] for report in imports]
    assert min(times) <= 0.050, times  # whatever else runs only adds to it


def test_choosing_an_accelerator_and_serving_an_op_starts_nothing(fresh):
    report = watched(fresh, SERVE)
    assert not report["printed"]
    assert not report["started"]
    assert not report["environment"]
    assert "torch._dynamo" not in report["loaded"], "the compiler takes seconds to import"
    assert loaded(report).isdisjoint({"rich", "typer", "triton", "transformers"})


def test_the_watch_sees_what_it_watches_for(fresh):
    body = "import subprocess, rich; subprocess.run(['true']); os.environ['X_Y'] = '1'; print('hi')"
    report = watched(fresh, body)
    assert report["printed"] == "hi\n"
    assert "subprocess.Popen" in report["started"]
    assert ["X_Y", "1"] in report["environment"]
    assert not loaded(report).isdisjoint(LATER)


FORK = """
import os, signal, sys
import torch
import accel
from accel import testing

torch.set_num_threads(4)

def threads():
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else None

def work():
    before = threads()
    good = torch.ones(1_000_000).exp().sum().item() > 2.7e6
    return good and (before is None or threads() > before)

with CHOOSING:
    accel.get_accelerator()
    child = os.fork()
    if child == 0:
        os._exit(0 if work() else 1)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.alarm(30)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_parallel_operation_in_a_child_forked_after_choosing_finishes(fresh):
    """A thread pool started before the fork would leave the child waiting for threads it lacks."""
    fresh(FORK.replace("CHOOSING", "testing.installed(testing.fake_backend())"))


@pytest.mark.skipif(
    "cpu" not in entry_points(group="accel.backends").names, reason="needs the cpu backend"
)
def test_a_parallel_operation_in_a_child_forked_after_choosing_the_host_finishes(fresh):
    fresh(FORK.replace("CHOOSING", "accel.use_accelerator('cpu')"))
