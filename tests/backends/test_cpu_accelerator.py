"""CpuAccelerator: the host processor, with everything it claims and nothing it does not."""

import ctypes
import time
from types import SimpleNamespace

import pytest
import torch

import accel
from accel.errors import UnsupportedCapability
from accel_cpu import accelerator as module
from accel_cpu import host_memory, plugin
from accel_cpu.accelerator import CpuAccelerator


@pytest.fixture
def acc():
    return CpuAccelerator(plugin.accel_backend())


def test_the_backend_is_the_host_and_always_there():
    backend = plugin.accel_backend()
    assert (backend.name, backend.device_type, backend.rank, backend.host) == (
        "cpu",
        "cpu",
        0,
        True,
    )
    assert backend.probe() == []
    assert backend.variables == ("ACCEL_CPU_ISA",)
    assert {builder.family() for builder in plugin.accel_op_builders()} == {
        "LinearBuilder",
        "TilingBuilder",
        "TransformerBuilder",
    }


def test_there_is_one_device_number_0(acc):
    assert acc.is_available()
    assert acc.device_count() == 1
    assert acc.current_device() == 0
    assert type(acc.current_device()) is int
    assert acc.device() == torch.device("cpu") == torch.empty(0).device
    assert acc.device_name() == acc.device_name(0) == acc.current_device_name() == "cpu"
    assert acc.on_accelerator(torch.empty(1))
    assert not acc.on_accelerator(torch.empty(1, device="meta"))
    acc.set_device(0)
    for index in (1, -1):
        with pytest.raises(ValueError, match=f"one device 0, not {index}"):
            acc.set_device(index)


def test_streams_and_events_are_real_and_complete_at_once(acc):
    assert acc.is_synchronized_device()
    assert acc.use_host_timers()
    assert {"streams", "events", "event_timing"} <= acc.capabilities
    stream = acc.Stream()
    start, end = acc.Event(enable_timing=True), acc.Event(enable_timing=True)
    with acc.stream(stream):
        assert acc.current_stream() is stream
        start.record()
        time.sleep(0.01)
        end.record()
    stream.wait_event(end)
    stream.synchronize()
    acc.synchronize()
    assert start.query()
    assert start.elapsed_time(end) >= 10.0
    assert acc.current_stream() is acc.default_stream()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_it_lists_computes(acc, dtype):
    assert dtype in acc.supported_dtypes()
    x = torch.arange(12, dtype=dtype).view(3, 4)
    wide = x.double()
    assert torch.equal((x @ x.t()).double(), wide @ wide.t())
    assert torch.equal((x * 2 + 1).double(), wide * 2 + 1)


def test_the_generator_is_torchs_own(acc):
    acc.manual_seed(7)
    assert acc.initial_seed() == 7 == torch.initial_seed()
    state = acc.get_rng_state(0)
    first = torch.rand(5)
    acc.set_rng_state(state, 0)
    assert torch.equal(torch.rand(5), first)
    acc.manual_seed_all(7)
    assert torch.equal(torch.rand(5), first)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(5, generator=acc.default_generator()), first)
    assert {"rng_state", "generator"} <= acc.capabilities
    for use in (acc.get_rng_state, acc.default_generator):
        with pytest.raises(ValueError, match="one device 0"):
            use(3)
    with acc.random().fork_rng(devices=()):
        acc.manual_seed(1)
    assert acc.initial_seed() == 7


def test_properties_tell_the_processor(acc):
    found = acc.properties()
    assert found.name
    assert found.total_memory == acc.total_memory() > 2**28
    assert 1 <= found.compute_units == found.details["usable_cores"]
    assert found.details["torch_isa"] == torch.backends.cpu.get_cpu_capability()
    assert acc.properties(0) == found
    with pytest.raises(ValueError, match="one device 0"):
        acc.properties(1)


def test_memory_of_the_host_is_in_bytes_and_ordered(acc):
    assert 2**20 < acc.available_memory() <= acc.total_memory()
    assert acc.supports("memory_info")


def test_a_system_that_does_not_tell_its_memory_is_refused(acc, monkeypatch):
    monkeypatch.setattr(host_memory, "_machine", lambda root: (2**30, None))
    assert acc.properties().total_memory <= 2**30
    assert not acc.supports("memory_info")
    for use in (acc.available_memory, acc.total_memory):
        with pytest.raises(UnsupportedCapability, match="which does not tell accel"):
            use()
    monkeypatch.setattr(host_memory, "_machine", lambda root: (None, None))
    with pytest.raises(UnsupportedCapability, match="how much memory it has"):
        acc.properties()


def test_empty_cache_gives_memory_back_to_the_system(acc):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    # Small enough to come from the heap, which the last of them keeps from shrinking by itself.
    blocks = [torch.ones(8192) for _ in range(4000)]
    last = blocks[-1]
    blocks.clear()
    before = resident()
    acc.empty_cache()
    assert before - resident() > 50 * 2**20
    assert last[0] == 1


def test_empty_cache_without_malloc_trim_is_refused(acc, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    with pytest.raises(UnsupportedCapability, match="no malloc_trim"):
        acc.empty_cache()


@pytest.mark.parametrize(
    ("capability", "use", "reason"),
    [
        ("visible_devices", lambda acc: acc.visible_devices_envs(), "taskset or numactl"),
        ("visible_devices", lambda acc: acc.set_visible_devices_envs({}, [0]), "one, the host"),
        ("triton", lambda acc: acc.require("triton"), "the host processor"),
    ],
)
def test_what_it_lacks_is_refused_with_the_reason(acc, capability, use, reason):
    assert not acc.supports(capability)
    with pytest.raises(UnsupportedCapability, match=reason):
        use(acc)
    assert not acc.is_triton_supported()


def test_every_capability_has_an_answer(acc):
    for capability in accel.CAPABILITIES:
        refused = acc.refusal(capability)
        assert (refused is None) is (capability in acc.capabilities)
        assert refused is None or (refused.want and refused.have)
    with pytest.raises(ValueError, match="did you mean 'graphs'"):
        acc.supports("graph")


def test_the_communication_backend_is_torchs_for_the_device(acc):
    if not torch.distributed.is_available():
        pytest.skip("torch without torch.distributed")
    expected = torch.distributed.get_default_backend_for_device("cpu")
    assert acc.communication_backend_name() == expected
    with pytest.raises(UnsupportedCapability, match=f"does not tell the version of '{expected}'"):
        acc.communication_backend_version()


class TestPinnedMemory:
    """torch pins host memory through another accelerator, or not at all."""

    def test_without_one_torchs_reason_is_given(self, acc):
        if torch.accelerator.current_accelerator() is not None:
            pytest.skip("torch was built for an accelerator")
        with pytest.raises(RuntimeError) as answer:
            torch.empty(1, pin_memory=True)
        with pytest.raises(UnsupportedCapability) as refused:
            acc.pin_memory(torch.ones(3))
        assert str(answer.value).splitlines()[0] in str(refused.value)
        plain = torch.ones(3)
        assert not acc.is_pinned(plain)
        assert acc.unpin_memory(plain) is plain

    def other_device(self, monkeypatch, *, started, count):
        """torch as built for another device; asking it to pin is noted, and fails."""
        tried = []
        device = SimpleNamespace(is_initialized=lambda: started, device_count=lambda: count)

        def empty(*args, pin_memory=False):
            tried.append(pin_memory)
            raise RuntimeError("no driver\nand a long story")

        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        monkeypatch.setattr(torch, "get_device_module", lambda device_: device)
        monkeypatch.setattr(module.torch, "empty", empty)
        return tried

    def test_a_question_starts_no_device(self, acc, monkeypatch):
        tried = self.other_device(monkeypatch, started=False, count=1)
        assert acc.refusal("pinned_memory") is None
        assert tried == []

    @pytest.mark.parametrize(("started", "count"), [(False, 0), (True, 1)])
    def test_otherwise_it_is_tried(self, acc, monkeypatch, started, count):
        tried = self.other_device(monkeypatch, started=started, count=count)
        assert acc.refusal("pinned_memory").have == "torch's answer: no driver"
        assert tried == [True]

    def test_a_failure_at_use_is_a_refusal_too(self, acc, monkeypatch):
        self.other_device(monkeypatch, started=False, count=1)
        with pytest.raises(UnsupportedCapability, match="torch cannot pin memory here"):
            acc.pin_memory(SimpleNamespace(pin_memory=lambda: torch.empty(1, pin_memory=True)))


def test_profiler_ranges_nest(acc):
    with torch.profiler.profile() as profile:
        acc.range_push("outer")
        torch.ones(3).sum()
        acc.range_pop()
    assert "outer" in {event.name for event in profile.events()}
    with pytest.raises(RuntimeError, match="without a range_push"):
        acc.range_pop()


def test_accel_build_compiles_the_memory_counter_too():
    from accel import cli, testing
    from accel_cpu import plugin

    # Alone: to make the accelerator of another backend may change torch for the whole process.
    with testing.installed(plugin):
        assert "accel_cpu.accelerator.CpuAccelerator" in cli._to_build()
