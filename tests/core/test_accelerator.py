"""Accelerator's defaults: over a torch device module, and honest about what that one lacks."""

from types import ModuleType, SimpleNamespace

import pytest
import torch

import accel
from accel import testing
from accel.accelerator import CAPABILITIES, DeviceProperties
from accel.errors import UnsupportedCapability

TYPE = "privateuseone"  # a device type torch can spell without the device


class Stream:
    pass


class Event:
    pass


def full_module(calls):
    """A torch device module that has everything and writes down how it was called."""
    module = ModuleType("torch.fake")
    module.Stream, module.Event = Stream, Event
    module.default_generators = ["generator 0", "generator 1"]
    answers = {
        "device_count": 2, "current_device": 1, "set_device": None, "synchronize": None,
        "is_bf16_supported": True, "stream": "scope", "current_stream": "current",
        "default_stream": "default", "memory_allocated": 10, "max_memory_allocated": 20,
        "memory_reserved": 30, "max_memory_reserved": 40, "reset_peak_memory_stats": None,
        "memory_stats": {"allocated_bytes.all.peak": 20}, "mem_get_info": (5, 50),
        "empty_cache": None, "manual_seed": None, "manual_seed_all": None, "initial_seed": 7,
        "get_rng_state": "state", "set_rng_state": None,
        "get_device_properties": SimpleNamespace(
            name="Fake", total_memory=50, multi_processor_count=8
        ),
    }  # fmt: skip

    def answer(name):
        return lambda *args: calls.append((name, *args)) or answers[name]

    for name in answers:
        setattr(module, name, answer(name))
    return module


@pytest.fixture
def calls():
    return []


@pytest.fixture
def device_module(calls, monkeypatch):
    """What torch gives as the device's module; a test may take things out of it."""
    module = full_module(calls)
    monkeypatch.setattr(torch, "get_device_module", lambda device_type: module)
    return module


def make(cls=accel.Accelerator, **backend):
    backend = {"name": "mine", "device_type": TYPE, **backend}
    return cls(testing.fake_backend(**backend).accel_backend())


@pytest.fixture
def acc(device_module):
    return make()


# member, its arguments, the call the module must get, the answer
MEMBERS = [
    ("device_count", (), ("device_count",), 2),
    ("current_device", (), ("current_device",), 1),
    ("set_device", (1,), ("set_device", 1), None),
    ("synchronize", (), ("synchronize", None), None),
    ("is_bf16_supported", (), ("is_bf16_supported",), True),
    ("stream", ("s",), ("stream", "s"), "scope"),
    ("current_stream", (), ("current_stream", None), "current"),
    ("default_stream", (1,), ("default_stream", 1), "default"),
    ("memory_allocated", (1,), ("memory_allocated", 1), 10),
    ("max_memory_allocated", (), ("max_memory_allocated", None), 20),
    ("memory_reserved", (), ("memory_reserved", None), 30),
    ("max_memory_reserved", (), ("max_memory_reserved", None), 40),
    ("reset_peak_memory_stats", (1,), ("reset_peak_memory_stats", 1), None),
    ("reset_max_memory_allocated", (1,), ("reset_peak_memory_stats", 1), None),
    ("memory_stats", (), ("memory_stats", None), {"allocated_bytes.all.peak": 20}),
    ("total_memory", (), ("mem_get_info", None), 50),
    ("available_memory", (1,), ("mem_get_info", 1), 5),
    ("empty_cache", (), ("empty_cache",), None),
    ("manual_seed", (3,), ("manual_seed", 3), None),
    ("manual_seed_all", (3,), ("manual_seed_all", 3), None),
    ("initial_seed", (), ("initial_seed",), 7),
    ("get_rng_state", (), ("get_rng_state",), "state"),
    ("get_rng_state", (1,), ("get_rng_state", 1), "state"),
    ("set_rng_state", ("state", 1), ("set_rng_state", "state", 1), None),
    ("properties", (1,), ("get_device_properties", 1), DeviceProperties("Fake", 50, 8)),
]


@pytest.mark.parametrize(("member", "args", "call", "answer"), MEMBERS)
def test_a_member_asks_the_device_module(acc, calls, member, args, call, answer):
    assert getattr(acc, member)(*args) == answer
    assert call in calls


@pytest.mark.parametrize(("member", "args", "call", "answer"), MEMBERS)
def test_a_member_the_module_has_not_is_refused(acc, device_module, member, args, call, answer):
    delattr(device_module, call[0])
    with pytest.raises(UnsupportedCapability, match=f"'mine' .*{call[0]}"):
        getattr(acc, member)(*args)


def test_torch_accelerator_answers_where_its_device_has_no_module_function(
    acc, device_module, monkeypatch
):
    del device_module.current_device
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(TYPE))
    monkeypatch.setattr(torch.accelerator, "current_device", lambda: 5, raising=False)
    assert acc.current_device() == 5
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    with pytest.raises(UnsupportedCapability, match=r"neither torch\.fake nor torch\.acc"):
        acc.current_device()


def test_devices_have_torchs_names(acc):
    assert acc.device() == torch.device(TYPE, 1), "the current one"
    assert acc.device(0) == torch.device(TYPE, 0)
    assert (acc.device_name(), acc.device_name(0)) == (TYPE, f"{TYPE}:0")
    assert acc.current_device_name() == f"{TYPE}:1"


def test_a_device_without_indices_has_none_in_its_names():
    acc = make(testing.FakeAccelerator)
    assert acc.device() == acc.device(0) == torch.device(TYPE)
    assert acc.device_name(0) == acc.current_device_name() == TYPE


def test_on_accelerator_goes_by_type():
    tensor = torch.empty(1, device="meta")
    assert make(device_type="meta").on_accelerator(tensor)
    assert not make(device_type=TYPE).on_accelerator(tensor)


def test_streams_and_events_are_the_modules(acc):
    assert (acc.Stream, acc.Event) == (Stream, Event)


@pytest.mark.parametrize(
    "question", ["is_synchronized_device", "use_host_timers", "resolves_data_dependency",
                 "handles_memory_backpressure"],
)  # fmt: skip
def test_a_device_is_asynchronous_unless_it_says_otherwise(acc, question):
    assert getattr(acc, question)() is False
    assert getattr(make(testing.FakeAccelerator), question)() is True


def test_dtypes_follow_what_is_supported(acc, monkeypatch):
    assert acc.supported_dtypes() == [torch.float32, torch.float16, torch.bfloat16]
    monkeypatch.setattr(acc, "is_fp16_supported", lambda: False)
    assert acc.supported_dtypes() == [torch.float32, torch.bfloat16]
    assert repr(acc).startswith(f"<Accelerator 'mine': torch device type {TYPE!r}")


def test_is_available_asks_the_probe_each_time():
    reasons = []
    acc = make(probe=lambda: reasons)
    assert acc.is_available()
    reasons.append(accel.Refusal("device", "one", "none"))
    assert not acc.is_available()


# -- capabilities ------------------------------------------------------------------------------

RESTS_ON = [(name, f) for name, (_, functions) in CAPABILITIES.items() for f in functions]


@pytest.mark.parametrize(("capability", "function"), RESTS_ON)
def test_a_capability_rests_on_functions_of_the_module(acc, device_module, capability, function):
    assert acc.supports(capability)
    assert capability in acc.capabilities
    acc.require(capability)
    delattr(device_module, function)
    assert not acc.supports(capability)
    assert capability not in acc.capabilities
    with pytest.raises(UnsupportedCapability, match=f"no {function} in torch.fake"):
        acc.require(capability)


@pytest.mark.parametrize("capability", ["graphs", "pinned_memory", "generator", "fp64", "triton"])
def test_a_capability_no_function_proves_must_be_claimed(acc, capability):
    with pytest.raises(UnsupportedCapability, match="none offered by Accelerator"):
        acc.require(capability)

    class Claims(accel.Accelerator):
        def refusal(self, asked):
            return None if asked == capability else super().refusal(asked)

    make(Claims).require(capability)


USES = {
    "graphs": [lambda a: a.create_graph(), lambda a: a.capture_to_graph(1),
               lambda a: a.replay_graph(1)],
    "pinned_memory": [lambda a: a.pin_memory(torch.ones(1))],
    "generator": [lambda a: a.default_generator()],
    "visible_devices": [lambda a: a.visible_devices_envs(),
                        lambda a: a.set_visible_devices_envs({}, [0])],
    "collectives": [lambda a: a.communication_backend_name()],
}  # fmt: skip


@pytest.mark.parametrize(
    ("capability", "use"), [(capability, use) for capability in USES for use in USES[capability]]
)
def test_using_what_is_missing_raises_with_the_reason(acc, capability, use):
    with pytest.raises(UnsupportedCapability, match=rf"'mine' has no {capability}: \[{capability}"):
        use(acc)


def test_an_unknown_capability_is_answered_with_near_names(acc):
    with pytest.raises(ValueError, match="'stream'; did you mean 'streams'"):
        acc.supports("stream")


def test_the_default_generator_is_the_current_devices(device_module):
    class Claims(accel.Accelerator):
        def refusal(self, asked):
            return None

    acc = make(Claims)
    assert acc.default_generator() == "generator 1"
    assert acc.default_generator(0) == "generator 0"


def test_memory_that_is_not_pinned_is_given_back_as_it_is(acc):
    tensor = torch.ones(2)
    assert acc.unpin_memory(tensor) is tensor
    assert not acc.is_pinned(tensor)


# -- collectives, environment, compilation -----------------------------------------------------


def test_collectives_are_those_torch_has_for_the_device(monkeypatch):
    acc = make(testing.FakeAccelerator, device_type=testing.HOST)
    asked = torch.distributed
    monkeypatch.setattr(asked, "get_default_backend_for_device", lambda device: "bus")
    monkeypatch.setattr(asked, "is_backend_available", lambda name: name == "bus")
    assert acc.communication_backend_name() == "bus"
    monkeypatch.setattr(asked, "is_backend_available", lambda name: False)
    with pytest.raises(UnsupportedCapability, match="'bus' is the default and is not built in"):
        acc.communication_backend_name()
    monkeypatch.setattr(asked, "is_available", lambda: False)
    with pytest.raises(UnsupportedCapability, match=r"built without torch\.distributed"):
        acc.communication_backend_name()


def test_visible_devices_are_written_into_the_given_environment():
    class Countable(testing.FakeAccelerator):
        visible_devices_variable = "FAKE_VISIBLE_DEVICES"

    environment = {"PATH": "/bin"}
    make(Countable).set_visible_devices_envs(environment, [2, 0])
    assert environment == {"PATH": "/bin", "FAKE_VISIBLE_DEVICES": "2,0"}
    assert make(Countable).visible_devices_envs() == ["FAKE_VISIBLE_DEVICES"]


def test_the_compile_backend_must_be_one_torch_knows(acc):
    assert acc.get_compile_backend() == "inductor"
    with pytest.raises(ValueError, match=r"unknown compile backend 'indictor'; .*inductor"):
        acc.set_compile_backend("indictor")
    assert acc.get_compile_backend() == "inductor"
    acc.set_compile_backend("eager")
    assert acc.get_compile_backend() == "eager"


def test_ranges_nest_and_appear_in_a_profile():
    acc = make(testing.FakeAccelerator)
    with torch.profiler.profile() as profile:
        acc.range_push("outer")
        acc.range_push("inner")
        acc.range_pop()
        acc.range_pop()
    spans = {e.name: e.time_range for e in profile.events() if e.name in ("outer", "inner")}
    assert spans["outer"].start <= spans["inner"].start
    assert spans["inner"].end <= spans["outer"].end
    with pytest.raises(RuntimeError, match="without a range_push"):
        acc.range_pop()
