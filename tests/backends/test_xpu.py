"""accel_xpu without a GPU: true refusals, and the accelerator over a stand-in for torch.xpu."""

import ctypes
import importlib.util
import os
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from accel.errors import UnsupportedCapability
from accel_xpu import plugin, probe
from accel_xpu.accelerator import XpuAccelerator

NODE = {"dev/dri/renderD128": "", "sys/class/drm/renderD128/device/vendor": "0x8086\n"}
NVIDIA = {"dev/dri/renderD129": "", "sys/class/drm/renderD129/device/vendor": "0x10de\n"}


@pytest.fixture
def machine(monkeypatch, tree):
    """A Linux machine with these files, with or without the driver, and a torch built for it."""

    def made(files, driver=True, count=-1):
        def load(name):
            if driver:
                return SimpleNamespace()
            raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr(probe, "ROOT", tree(files))
        monkeypatch.setattr(ctypes, "CDLL", load)
        monkeypatch.setattr(torch.xpu, "_is_compiled", lambda: True)
        monkeypatch.setattr(torch.xpu, "_device_count_zes", lambda: count, raising=False)
        for name in ("is_available", "device_count", "init", "_lazy_init"):
            monkeypatch.setattr(torch.xpu, name, _forbidden(name))

    return made


def _forbidden(name):
    def call(*args):
        raise AssertionError(f"the probe called torch.xpu.{name}, which may start the runtime")

    return call


class TestProbe:
    def refused(self):
        (refusal,) = probe.probe()
        return refusal

    @pytest.mark.skipif(torch.xpu._is_compiled(), reason="torch has XPU")
    def test_this_torch_is_built_without(self):
        assert self.refused().code == "torch"
        assert self.refused().have == f"torch {torch.__version__}, built without"
        assert not torch.xpu.is_initialized()

    def test_no_device_file(self, machine):
        machine({})
        assert self.refused().have == "no device file /dev/dri/renderD*"

    def test_gpus_of_others_only(self, machine):
        machine(NVIDIA)
        assert self.refused().have == "only GPUs of other vendors (PCI 0x10de)"

    def test_a_device_file_that_may_not_be_opened(self, machine, monkeypatch):
        machine({**NVIDIA, **NODE})
        monkeypatch.setattr(os, "access", lambda path, mode: "renderD129" in str(path))
        assert self.refused().have == "/dev/dri/renderD128, which this user may not open"
        assert self.refused().remedy == "add the user to the group render"

    def test_no_driver_library(self, machine):
        machine(NODE, driver=False)
        assert self.refused().code == "driver"
        assert "libze_intel_gpu.so.1: cannot open" in self.refused().have

    def test_a_driver_that_sees_nothing(self, machine, monkeypatch):
        machine(NODE, count=0)
        assert self.refused().have == "a driver that sees none"
        monkeypatch.setenv("ZE_AFFINITY_MASK", "9")
        assert self.refused().have == "none that ZE_AFFINITY_MASK='9' leaves visible"

    @pytest.mark.parametrize("count", [2, -1])
    @pytest.mark.parametrize(
        "files", [NODE, {"dev/dri/renderD128": ""}, {"dev/dxg": ""}], ids=["linux", "bare", "wsl"]
    )
    def test_a_gpu_is_there_or_cannot_be_counted_and_is_believed(self, machine, files, count):
        machine(files, count=count)
        assert probe.probe() == []

    def test_a_torch_that_cannot_count_without_starting_is_believed(self, machine, monkeypatch):
        machine(NODE)
        monkeypatch.delattr(torch.xpu, "_device_count_zes")
        assert probe.probe() == []

    def test_elsewhere_torch_is_asked(self, machine, monkeypatch):
        machine({}, driver=False)
        monkeypatch.setattr(probe.sys, "platform", "win32")
        monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
        assert probe.probe() == []
        monkeypatch.setattr(torch.xpu, "device_count", lambda: 0)
        assert self.refused().code == "device"


FACTS = {
    "name": "Intel Arc B580", "total_memory": 2**33, "max_compute_units": 160, "has_fp16": True,
    "has_fp64": True, "driver_version": "1.6", "uuid": "abc",
}  # fmt: skip


@pytest.fixture
def acc():
    return XpuAccelerator(plugin.accel_backend())


@pytest.fixture
def gpu(stand_in, monkeypatch):
    """Two GPUs of which number 1 is current; what is said of them can be changed."""
    state = SimpleNamespace(
        facts=dict(FACTS),
        generators=(torch.Generator(), torch.Generator()),
        memory=(2**30, 2**33),
        streams=threading.local(),
    )

    def mem_get_info(device=None):
        if isinstance(state.memory, Exception):
            raise state.memory
        return state.memory

    def init():
        monkeypatch.setattr(torch.xpu, "default_generators", state.generators)

    figures = (
        "memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved",
    )  # fmt: skip
    state.calls = stand_in(
        torch.xpu,
        {
            "device_count": lambda: 2,
            "current_device": lambda: 1,
            "set_device": lambda device: None,
            "synchronize": lambda device=None: None,
            "get_device_properties": lambda device=None: SimpleNamespace(**state.facts),
            "get_device_capability": lambda device=None: {
                name: value for name, value in state.facts.items() if name != "uuid"
            },
            "is_bf16_supported": lambda including_emulation: False,
            "init": init,
            "mem_get_info": mem_get_info,
            "memory_stats": lambda device=None: {"allocated_bytes.all.current": 7},
            "reset_peak_memory_stats": lambda device=None: None,
            "empty_cache": lambda: None,
            "manual_seed": lambda seed: None,
            "manual_seed_all": lambda seed: None,
            "initial_seed": lambda: 5,
            "get_rng_state": lambda device="xpu": torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": lambda new_state, device="xpu": None,
            "stream": nullcontext,
            "current_stream": lambda device=None: getattr(state.streams, "now", ("first", device)),
            **dict.fromkeys(figures, lambda device=None: 7),
        },
    )  # fmt: skip
    return state


class TestAccelerator:
    def test_making_it_asks_nothing_of_the_gpu(self, gpu):
        backend = plugin.accel_backend()
        assert (backend.name, backend.device_type, backend.rank) == ("xpu", "xpu", 90)
        assert (backend.vendor, backend.host) == ("Intel", False)
        XpuAccelerator(backend)
        assert gpu.calls == []

    def test_devices(self, acc, gpu):
        assert acc.device_count() == 2
        assert acc.device() == torch.device("xpu", 1)
        assert acc.current_device_name() == "xpu:1"
        acc.set_device(0)
        acc.synchronize()
        assert ("set_device", 0) in gpu.calls
        assert ("synchronize", None) in gpu.calls

    def test_properties(self, acc, gpu):
        found = acc.properties()
        assert (found.name, found.total_memory, found.compute_units) == (
            "Intel Arc B580", 2**33, 160,
        )  # fmt: skip
        assert found.details["driver_version"] == "1.6"
        assert found.details["uuid"] == "abc"
        # torch keeps its answer by the argument, and would keep it for "the current one".
        assert ("get_device_capability", 1) in gpu.calls
        with pytest.raises(ValueError, match="2 GPUs, and no number -1"):
            acc.properties(-1)
        del gpu.facts["uuid"]
        assert acc.properties(0).details["uuid"] == "unknown"

    def test_dtypes(self, acc, gpu):
        assert acc.supported_dtypes() == [torch.float32, torch.float16, torch.float64]
        assert ("is_bf16_supported", ("including_emulation", False)) in gpu.calls
        gpu.facts |= {"has_fp16": False, "has_fp64": False}
        assert acc.supported_dtypes() == [torch.float32]
        with pytest.raises(UnsupportedCapability, match="Intel Arc B580, without"):
            acc.require("fp64")

    def test_streams_and_events_are_torchs_own(self, acc, gpu):
        assert acc.Stream is torch.xpu.Stream
        assert acc.Event is torch.xpu.Event
        assert {"streams", "events", "event_timing"} <= acc.capabilities
        with acc.stream("side"):
            pass

    def test_the_default_stream_is_the_one_a_new_thread_finds(self, acc, gpu):
        gpu.streams.now = "side"
        assert acc.current_stream() == "side"
        assert acc.default_stream() == ("first", 1)
        assert acc.default_stream(0) == ("first", 0)
        with pytest.raises(ValueError, match="no number 5"):
            acc.default_stream(5)

    def test_graphs_are_torchs_own(self, acc, gpu, monkeypatch):
        captured, replayed = [], []
        graph = SimpleNamespace(replay=lambda: replayed.append(True))
        monkeypatch.setattr(torch.xpu, "XPUGraph", lambda: graph, raising=False)

        def capture(xpu_graph, pool=None, stream=None):
            captured.append((xpu_graph, pool, stream))
            return nullcontext()

        monkeypatch.setattr(torch.xpu, "graph", capture, raising=False)
        assert acc.supports("graphs")
        with acc.capture_to_graph(acc.create_graph(), pool="pool", stream="side"):
            pass
        acc.replay_graph(graph)
        assert (captured, replayed) == ([(graph, "pool", "side")], [True])

    def test_a_torch_without_graphs_refuses_them(self, acc, gpu, monkeypatch):
        monkeypatch.delattr(torch.xpu, "XPUGraph", raising=False)
        for use in (
            acc.create_graph, lambda: acc.capture_to_graph(None), lambda: acc.replay_graph(None),
        ):  # fmt: skip
            with pytest.raises(UnsupportedCapability, match=r"install torch 2\.11 or later"):
                use()

    def test_random_numbers(self, acc, gpu):
        acc.manual_seed(3)
        acc.manual_seed_all(4)
        assert acc.initial_seed() == 5
        acc.set_rng_state(acc.get_rng_state(), 1)
        assert acc.default_generator(0) is gpu.generators[0]
        assert acc.default_generator() is gpu.generators[1]
        assert {"rng_state", "generator"} <= acc.capabilities

    def test_memory(self, acc, gpu):
        for figure in ("memory_allocated", "max_memory_allocated", "memory_reserved"):
            assert getattr(acc, figure)() == 7
        assert acc.max_memory_reserved(0) == 7
        acc.reset_peak_memory_stats()
        acc.empty_cache()
        assert acc.memory_stats() == {"allocated_bytes.all.current": 7}
        assert (acc.available_memory(), acc.total_memory(0)) == (2**30, 2**33)
        assert acc.supports("memory_info")
        with pytest.raises(ValueError, match="2 GPUs, and no number 2"):
            acc.available_memory(2)

    def test_a_gpu_that_cannot_tell_its_free_memory_refuses_that_and_works(self, acc, gpu):
        gpu.memory = RuntimeError("The device does not support querying free memory\nat Foo.cpp")
        assert not acc.supports("memory_info")
        for ask in (acc.available_memory, acc.total_memory):
            with pytest.raises(UnsupportedCapability) as refused:
                ask()
            assert acc.refusal("memory_info").have in str(refused.value)
            assert "support querying free memory" in str(refused.value)
        assert acc.properties().total_memory == 2**33
        assert acc.memory_allocated() == 7

    def test_pinned_memory_is_torchs(self, acc, gpu):
        pinned = object()
        assert acc.supports("pinned_memory")
        assert acc.pin_memory(SimpleNamespace(pin_memory=lambda: pinned)) is pinned

    def test_the_environment(self, acc):
        environment = {}
        acc.set_visible_devices_envs(environment, [0, 2])
        assert environment == {"ZE_AFFINITY_MASK": "0,2"}
        assert acc.visible_devices_envs() == ["ZE_AFFINITY_MASK"]
        assert "CCL" in acc.export_envs()

    def test_collectives_need_xccl_in_torch(self, acc):
        if torch.distributed.is_available() and torch.distributed.is_xccl_available():
            assert acc.communication_backend_name() == "xccl"
        else:
            with pytest.raises(UnsupportedCapability, match="collectives"):
                acc.communication_backend_name()


class TestTriton:
    def install(self, tree, monkeypatch, backend):
        root = tree({"__init__.py": "", f"backends/{backend}/x": ""})
        spec = SimpleNamespace(origin=str(root / "__init__.py"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

    def test_its_own(self, acc, tree, monkeypatch):
        self.install(tree, monkeypatch, "intel")
        assert acc.is_triton_supported()

    def test_the_common_one_hides_it(self, acc, tree, monkeypatch):
        self.install(tree, monkeypatch, "nvidia")
        assert "without its intel backend" in acc.refusal("triton").have
        assert not acc.is_triton_supported()

    def test_none(self, acc, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert acc.refusal("triton").have == "no Triton installed"
