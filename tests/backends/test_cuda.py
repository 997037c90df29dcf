"""CudaAccelerator without a GPU, over a stand-in for torch.cuda."""

import importlib.util
import inspect
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from accel.errors import UnsupportedCapability
from accel_cuda import accelerator, nvml, plugin
from accel_cuda.accelerator import CudaAccelerator

PROPERTIES = SimpleNamespace(
    name="NVIDIA H200", total_memory=2**37, multi_processor_count=132, major=9, minor=0,
    uuid="0123-4567", is_integrated=0, L2_cache_size=2**26, gcnArchName="sm_90",
)  # fmt: skip


@pytest.fixture
def acc():
    return CudaAccelerator(plugin.accel_backend())


@pytest.fixture
def gpu(stand_in, monkeypatch):
    """Two GPUs of which number 1 is current; what is said of them can be changed."""
    state = SimpleNamespace(
        properties=PROPERTIES,
        generators=(torch.Generator(), torch.Generator()),
        memory=(2**30, 2**37),
    )

    def mem_get_info(device=None):
        if isinstance(state.memory, Exception):
            raise state.memory
        return state.memory

    def init():
        monkeypatch.setattr(torch.cuda, "default_generators", state.generators)

    figures = (
        "memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved",
    )  # fmt: skip
    state.calls = stand_in(
        torch.cuda,
        {
            "device_count": lambda: 2,
            "current_device": lambda: 1,
            "set_device": lambda device: None,
            "synchronize": lambda device=None: None,
            "get_device_properties": lambda device=None: state.properties,
            "get_device_capability": lambda device=None: (
                state.properties.major, state.properties.minor,
            ),
            "is_bf16_supported": lambda including_emulation: state.properties.major >= 8,
            "init": init,
            "mem_get_info": mem_get_info,
            "memory_stats": lambda device=None: {"allocated_bytes.all.current": 7},
            "reset_peak_memory_stats": lambda device=None: None,
            "empty_cache": lambda: None,
            "manual_seed": lambda seed: None,
            "manual_seed_all": lambda seed: None,
            "initial_seed": lambda: 5,
            "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
            "set_rng_state": lambda new_state, device="cuda": None,
            "stream": nullcontext,
            "current_stream": lambda device=None: "current",
            "default_stream": lambda device=None: "default",
            **dict.fromkeys(figures, lambda device=None: 7),
        },
    )  # fmt: skip
    return state


class TestAccelerator:
    def test_making_it_asks_nothing_of_the_gpu(self, gpu):
        backend = plugin.accel_backend()
        assert (backend.name, backend.device_type, backend.rank) == ("cuda", "cuda", 100)
        assert not backend.host
        CudaAccelerator(backend)
        assert gpu.calls == []

    def test_devices(self, acc, gpu):
        assert acc.device_count() == 2
        assert acc.device() == torch.device("cuda", 1)
        assert acc.device(0) == torch.device("cuda", 0)
        assert acc.device_name() == "cuda"
        assert acc.current_device_name() == acc.device_name(1) == "cuda:1"
        acc.set_device(0)
        assert ("set_device", 0) in gpu.calls
        assert not acc.on_accelerator(torch.ones(1))

    def test_properties(self, acc, gpu, monkeypatch):
        monkeypatch.setattr(nvml, "driver_version", lambda: "580.65.06")
        found = acc.properties(0)
        assert (found.name, found.total_memory, found.compute_units) == ("NVIDIA H200", 2**37, 132)
        assert found.details == {
            "uuid": "0123-4567", "driver": "580.65.06", "mig": None, "integrated": False,
            "l2_cache": 2**26, "capability": (9, 0),
        }  # fmt: skip

    def test_a_part_of_a_gpu_says_so(self, acc, gpu, monkeypatch):
        monkeypatch.setattr(nvml, "driver_version", lambda: None)
        name = "NVIDIA H200 MIG 1g.18gb"
        gpu.properties = SimpleNamespace(**{**vars(PROPERTIES), "name": name})
        assert acc.properties().details["mig"] == "1g.18gb"
        assert acc.properties().details["driver"] == "unknown"

    def test_a_driver_that_does_not_tell_its_version(self, acc, gpu, monkeypatch):
        def driver_version():
            raise nvml.NvmlError("NVML error 999: Unknown Error")

        monkeypatch.setattr(nvml, "driver_version", driver_version)
        assert "Unknown Error" in acc.properties().details["driver"]

    @pytest.mark.parametrize(
        ("capability", "bf16", "fp16"),
        [
            ((5, 0), False, False),
            ((5, 3), False, True),
            ((7, 5), False, True),
            ((9, 0), True, True),
        ],
    )
    def test_dtypes_by_capability(self, acc, gpu, capability, bf16, fp16):
        major, minor = capability
        gpu.properties = SimpleNamespace(major=major, minor=minor)
        assert (acc.is_bf16_supported(), acc.is_fp16_supported()) == (bf16, fp16)
        assert (torch.bfloat16 in acc.supported_dtypes()) is bf16
        assert ("is_bf16_supported", ("including_emulation", False)) in gpu.calls
        assert torch.float64 in acc.supported_dtypes()

    def test_streams_events_and_graphs_are_torchs_own(self, acc, gpu, monkeypatch):
        assert not acc.is_synchronized_device()
        assert acc.Stream is torch.cuda.Stream
        assert acc.Event is torch.cuda.Event
        assert (acc.current_stream(), acc.default_stream(0)) == ("current", "default")
        with acc.stream("side"):
            acc.synchronize()
        made, captured, replayed = [], [], []
        graph = SimpleNamespace(replay=lambda: replayed.append(True))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(graph) or graph)

        def capture(cuda_graph, pool, stream, capture_error_mode):
            inspect.signature(real).bind(cuda_graph, pool, stream, capture_error_mode)
            assert capture_error_mode == "thread_local", "other threads would end it"
            captured.append((cuda_graph, pool, stream))
            return nullcontext()

        real = torch.cuda.graph

        monkeypatch.setattr(torch.cuda, "graph", capture)
        assert acc.supports("graphs")
        with acc.capture_to_graph(acc.create_graph(), pool="pool", stream="side"):
            pass
        acc.replay_graph(graph)
        assert (made, captured, replayed) == ([graph], [(graph, "pool", "side")], [True])

    def test_graphs_are_recorded_on_a_stream_of_the_current_device(self, acc, gpu, monkeypatch):
        monkeypatch.setattr(torch.cuda, "graph", lambda graph, *, stream, **others: stream)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
        accelerator._side_stream.cache_clear()
        found = []
        for device in (1, 0, 1):
            monkeypatch.setattr(torch.cuda, "current_device", lambda device=device: device)
            found.append(acc.capture_to_graph("graph"))
        accelerator._side_stream.cache_clear()
        assert found == ["a stream of 1", "a stream of 0", "a stream of 1"]

    def test_random_numbers(self, acc, gpu):
        acc.manual_seed(3)
        acc.manual_seed_all(4)
        assert acc.initial_seed() == 5
        acc.set_rng_state(acc.get_rng_state(), 1)
        assert [call[0] for call in gpu.calls[:3]] == [
            "manual_seed", "manual_seed_all", "initial_seed",
        ]  # fmt: skip
        assert {"rng_state", "generator"} <= acc.capabilities
        assert acc.default_generator(0) is gpu.generators[0]
        assert acc.default_generator() is gpu.generators[1]

    def test_memory(self, acc, gpu):
        for figure in ("memory_allocated", "max_memory_allocated", "memory_reserved"):
            assert getattr(acc, figure)() == 7
        assert acc.max_memory_reserved(0) == 7
        acc.reset_peak_memory_stats()
        acc.empty_cache()
        assert acc.memory_stats(1) == {"allocated_bytes.all.current": 7}
        assert (acc.available_memory(), acc.total_memory(0)) == (2**30, 2**37)
        with pytest.raises(ValueError, match="2 GPUs, and no number 2"):
            acc.available_memory(2)

    def test_a_gpu_that_cannot_tell_its_memory_refuses(self, acc, gpu):
        gpu.memory = RuntimeError("CUDA error: out of memory")
        for ask in (acc.available_memory, acc.total_memory):
            with pytest.raises(UnsupportedCapability, match="free memory: CUDA error"):
                ask()

    def test_pinned_memory_is_torchs(self, acc, gpu):
        assert acc.supports("pinned_memory")
        pinned = object()
        assert acc.pin_memory(SimpleNamespace(pin_memory=lambda: pinned)) is pinned

    def test_the_environment(self, acc, monkeypatch):
        environment = {"CUDA_VISIBLE_DEVICES": "7"}
        acc.set_visible_devices_envs(environment, [0, 2])
        assert environment == {"CUDA_VISIBLE_DEVICES": "0,2"}
        assert acc.export_envs() == ["NCCL", "TORCH_NCCL"]
        monkeypatch.setattr(torch.version, "hip", "7.0")
        amd = CudaAccelerator(plugin.accel_backend())
        assert amd.visible_devices_envs() == ["HIP_VISIBLE_DEVICES"]
        assert {"NCCL", "RCCL", "HSA"} <= set(amd.export_envs())

    def test_amd_differs_where_it_must(self, acc, gpu, monkeypatch):
        monkeypatch.setattr(torch.version, "hip", "7.0")
        gpu.properties = SimpleNamespace(**{**vars(PROPERTIES), "gcnArchName": "gfx942"})
        details = acc.properties().details
        assert details["architecture"] == "gfx942"
        assert "capability" not in details
        assert isinstance(details["driver"], str)
        assert acc.is_fp16_supported()

    def test_collectives_need_nccl_in_torch(self, acc):
        if torch.distributed.is_available() and torch.distributed.is_nccl_available():
            assert acc.communication_backend_name() == "nccl"
            assert acc.communication_backend_version() >= (2,)
        else:
            for asked in (acc.communication_backend_name, acc.communication_backend_version):
                with pytest.raises(UnsupportedCapability, match="collectives"):
                    asked()


class TestTriton:
    @pytest.fixture
    def installed(self, tree, monkeypatch):
        def install(*backends):
            root = tree(dict.fromkeys(["__init__.py", *(f"backends/{b}/x" for b in backends)], ""))
            spec = SimpleNamespace(origin=str(root / "__init__.py"))
            monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)

        return install

    def test_a_recent_gpu_and_its_backend(self, acc, gpu, installed):
        installed("nvidia", "amd")
        assert acc.is_triton_supported()

    def test_an_old_gpu(self, acc, gpu, installed):
        installed("nvidia")
        gpu.properties = SimpleNamespace(major=7, minor=5)
        assert acc.refusal("triton").have == "7.5"
        assert not acc.is_triton_supported()

    def test_another_vendors_triton(self, acc, gpu, installed):
        installed("intel")
        assert "without its nvidia backend" in acc.refusal("triton").have

    def test_on_amd(self, acc, gpu, installed, monkeypatch):
        monkeypatch.setattr(torch.version, "hip", "7.0")
        installed("amd")
        assert acc.is_triton_supported()

    def test_none(self, acc, gpu, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert acc.refusal("triton").have == "no Triton installed"


class TestRanges:
    @pytest.fixture
    def ranges(self, monkeypatch, stand_in):
        accelerator._nvtx_package.cache_clear()
        yield stand_in(torch.cuda.nvtx, {"range_push": lambda msg: 0, "range_pop": lambda: 0})
        accelerator._nvtx_package.cache_clear()

    def test_without_the_package_the_domain_stands_before_the_message(
        self, acc, ranges, monkeypatch
    ):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        acc.range_push("step")
        acc.range_push("step", domain="accel", category="forward")
        acc.range_pop(domain="accel")
        acc.range_pop()
        assert ranges == [
            ("range_push", "step"),
            ("range_push", "accel: forward: step"),
            ("range_pop",),
            ("range_pop",),
        ]

    def test_with_it_domains_are_nvtxs_own(self, acc, ranges, monkeypatch):
        done = []

        def push_range(message=None, color=None, domain=None, category=None, payload=None):
            done.append((message, domain, category))

        package = SimpleNamespace(
            push_range=push_range, pop_range=lambda domain=None: done.append(domain)
        )
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(importlib, "import_module", lambda name: package)
        acc.range_push("step", domain="accel", category="forward")
        acc.range_pop(domain="accel")
        acc.range_push("plain")
        acc.range_pop()
        assert done == [("step", "accel", "forward"), "accel"]
        assert ranges == [("range_push", "plain"), ("range_pop",)]
