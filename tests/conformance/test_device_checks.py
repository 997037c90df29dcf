"""The checks of the device layer; wrong ones are faults of the self-test, in test_faults.py."""

import torch

import accel
from accel import testing
from accel.accelerator import CAPABILITIES
from accel_conformance.faults import NOTHING, device, host
from accel_conformance.faults.device import runtime
from accel_conformance.suite.accelerator import abilities
from accel_conformance.trials import replace, trial

NO_DEVICE_FAULT = replace(NOTHING, op=None)


def test_a_right_device_layer_passes(conform):
    status, report = conform(cases=["accelerator/*"])
    assert status == 0, [case["message"] for case in report["cases"] if case["broken"]]


def test_a_right_device_layer_that_works_later_passes_and_declines_little():
    found = trial(NO_DEVICE_FAULT)
    assert found.problems == ()
    refused = {r.case.id for r in found.results if r.evidence.refusals}
    assert not refused - {"accelerator/capability/triton"}


def test_the_simulated_device_shows_a_forgotten_wait():
    acc = host_with_devices()
    with device.present():
        made, used = acc.Stream(), acc.Stream()
        with acc.stream(made):
            ones = torch.zeros(4) + 1
        with acc.stream(used):
            too_early = ones + 1
        acc.synchronize()
        used.wait_stream(made)
        with acc.stream(used):
            late = ones + 1
        acc.synchronize()
    assert torch.isnan(too_early).all()
    assert late.tolist() == [2.0] * 4


def test_the_simulated_device_counts_what_is_held():
    with device.present():
        before = runtime.memory_allocated(0)
        tensor = torch.empty(1000, dtype=torch.uint8)
        view = tensor[10:]
        held = runtime.memory_allocated(0) - before
        del tensor
        still = runtime.memory_allocated(0) - before
        del view
        after = runtime.memory_allocated(0)
    assert (held, still, after) == (1000, 1000, before)


def host_with_devices():
    backend = host.plugin("accel_conformance.faults.device:SimulatedAccelerator")
    with testing.installed(backend):
        return accel.get_accelerator()


def test_every_capability_is_used():
    assert set(abilities.USES) == set(CAPABILITIES)


def test_a_run_leaves_random_state_threads_and_accelerator_as_they_were(conform):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with accel.use_accelerator("host") as chosen:
        conform(cases=["accelerator/*", "rows/linear/host.linear/float32/odd"])
        assert accel.get_accelerator() is chosen
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
