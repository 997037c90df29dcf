"""Wrong device layers, each caught by the check that is for it."""

import os
import time
from contextlib import contextmanager

import conformance_host
import pytest
import torch
from conformance_host import HostAccelerator

import accel
from accel import testing
from accel.accelerator import CAPABILITIES, DeviceProperties
from accel.accelerator.host import HostEvent
from accel_conformance.suite.accelerator import abilities


class IndexIsText(HostAccelerator):
    def current_device(self):
        return os.environ.get("LOCAL_RANK", "0")


class DeviceIsText(HostAccelerator):
    def device(self, device_index=None):
        return "cpu"


class AnyIndexWillDo(HostAccelerator):
    def set_device(self, device_index):
        pass


class SecondsForMilliseconds(HostAccelerator):
    class Event(HostEvent):
        def elapsed_time(self, end):
            return super().elapsed_time(end) / 1000


class StreamsAreNotLeft(HostAccelerator):
    @contextmanager
    def stream(self, stream):
        stream.__enter__()
        yield stream
        stream.__exit__(None, None, None)


class StateIsNotRestored(HostAccelerator):
    def set_rng_state(self, new_state, device_index=None):
        pass


class SeedIsIgnored(HostAccelerator):
    def manual_seed(self, seed):
        torch.manual_seed(time.perf_counter_ns())


class MemoryOfTheProcess(HostAccelerator):
    def refusal(self, capability):
        return None if capability == "memory_stats" else super().refusal(capability)

    def memory_allocated(self, device_index=None):
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    memory_reserved = memory_allocated

    def memory_stats(self, device_index=None):
        return {"allocated_bytes.all.current": self.memory_allocated()}

    def empty_cache(self):
        pass


class ClaimsPinnedMemory(HostAccelerator):
    def refusal(self, capability):
        return None if capability == "pinned_memory" else super().refusal(capability)

    def pin_memory(self, tensor):
        return tensor


class DoesNothingForGraphs(HostAccelerator):
    def create_graph(self):
        return None


class ClaimsBfloat16(HostAccelerator):
    def supported_dtypes(self):
        return [torch.float32, torch.bfloat16]


class PropertiesAreText(HostAccelerator):
    def properties(self, device_index=None):
        return DeviceProperties("host", "8 GiB", 2)


class AnyCompileBackendWillDo(HostAccelerator):
    def set_compile_backend(self, backend):
        self._compile_backend = backend


class WritesTheEnvironment(HostAccelerator):
    visible_devices_variable = "HOST_DEVICES"

    def set_visible_devices_envs(self, current_env, local_accelerator_ids):
        os.environ["HOST_DEVICES"] = "1,0"
        current_env["HOST_DEVICES"] = "1,0"


WRONG = {
    IndexIsText: {"accelerator/indices_are_ints": "types"},
    DeviceIsText: {"accelerator/devices_are_what_tensors_report": "types"},
    AnyIndexWillDo: {"accelerator/set_device_refuses_what_is_not_there": "identity"},
    SecondsForMilliseconds: {"accelerator/events_tell_milliseconds": "events"},
    StreamsAreNotLeft: {"accelerator/streams_are_left_by_exceptions": "streams"},
    StateIsNotRestored: {"accelerator/state_round_trips": "random"},
    SeedIsIgnored: {"accelerator/seeding_reproduces": "random"},
    MemoryOfTheProcess: {"accelerator/allocated_moves_with_tensors": "memory"},
    ClaimsPinnedMemory: {"accelerator/pinned_memory_is_pinned": "pinning"},
    DoesNothingForGraphs: {"accelerator/capability/graphs": "capability"},
    ClaimsBfloat16: {"accelerator/dtypes_agree": "types"},
    PropertiesAreText: {"accelerator/properties_are_facts": "types"},
    AnyCompileBackendWillDo: {"accelerator/compile_backend_is_checked": "compile"},
    WritesTheEnvironment: {"accelerator/visible_devices_go_where_asked": "environment"},
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda cls: cls.__name__)
def test_a_wrong_device_layer_is_caught(conform, monkeypatch, wrong):
    monkeypatch.delenv("HOST_DEVICES", raising=False)
    ((id, rule),) = WRONG[wrong].items()
    with testing.installed(conformance_host.plugin(f"{__name__}:{wrong.__name__}")):
        status, report = conform(cases=[id])
    monkeypatch.delenv("HOST_DEVICES", raising=False)
    assert status == 1
    (case,) = report["cases"]
    assert rule in {broken["rule"] for broken in case["broken"]}, case["message"]


def test_a_right_device_layer_passes(conform):
    status, report = conform(cases=["accelerator/*"])
    assert status == 0, [case["message"] for case in report["cases"] if case["broken"]]


def test_every_capability_is_used():
    assert set(abilities.USES) == set(CAPABILITIES)


def test_a_run_leaves_random_state_threads_and_accelerator_as_they_were(conform):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with accel.use_accelerator("host") as chosen:
        conform(cases=["accelerator/*", "rows/linear/host.linear/float32/odd"])
        assert accel.get_accelerator() is chosen
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
