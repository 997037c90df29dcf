"""An accel backend as DeepSpeed's accelerator: every member is answered, or refused with words."""

import pytest
import torch

import accel
from accel import testing
from accel.deepspeed import adapter, set_deepspeed_accelerator
from accel.errors import AccelError, UnsupportedCapability

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: make test-deepspeed")

import deepspeed
from deepspeed.accelerator import DeepSpeedAccelerator, get_accelerator, real_accelerator
from deepspeed.ops import op_builder

HOST = torch.device("cpu")
# What each abstract member is called with.
ARGUMENTS = {
    "set_device": (1,), "set_rng_state": (torch.get_rng_state(),), "manual_seed": (3,),
    "manual_seed_all": (3,), "device": (0,), "device_name": (0,), "default_generator": (0,),
    "stream": (None,), "on_accelerator": (torch.ones(1),),
    "create_op_builder": ("FusedAdamBuilder",), "get_op_builder": ("FusedAdamBuilder",),
    "set_compile_backend": ("eager",),
    "set_visible_devices_envs": ({}, [0]), "lazy_call": (lambda: None,), "range_push": ("here",),
    **{f"{kind}Tensor": ([1],) for kind in
       ("BFloat16", "Byte", "Double", "Float", "Half", "Int", "Long")},
}  # fmt: skip
# Those that do something, and have nothing to say.
SILENT = {
    "set_device", "set_rng_state", "manual_seed", "manual_seed_all", "synchronize", "empty_cache",
    "reset_max_memory_allocated", "reset_max_memory_cached", "reset_peak_memory_stats",
    "lazy_call", "range_push", "range_pop", "set_compile_backend", "set_visible_devices_envs",
    "replay_graph",
}  # fmt: skip
LACKING = {"visible_devices_envs", "set_visible_devices_envs"}
OF_A_STRANGER = {
    "available_memory", "total_memory", "create_graph", "default_generator", "initial_seed",
    "get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all", "memory_allocated",
    "max_memory_allocated", "memory_cached", "max_memory_cached", "memory_reserved",
    "max_memory_reserved", "reset_max_memory_allocated", "reset_max_memory_cached",
    "reset_peak_memory_stats",
}  # fmt: skip
REFUSED = {"cpu": LACKING, "stranger": LACKING | OF_A_STRANGER}
MEMBERS = sorted(DeepSpeedAccelerator.__abstractmethods__ - {"capture_to_graph", "replay_graph"})


@pytest.fixture
def _left_as_it_was():
    before = real_accelerator.ds_accelerator
    yield
    deepspeed.accelerator.set_accelerator(before)
    adapter._bind_builders_of(before)


@pytest.fixture(params=["cpu", "stranger"])
def made(request):
    """One made over our backend for the host, and over a stranger's."""
    if request.param == "cpu":
        yield adapter.adapted(accel.get_accelerator())
        return
    stranger = testing.fake_backend("stranger")
    with testing.installed(stranger), accel.use_accelerator("stranger") as accelerator:
        yield adapter.adapted(accelerator)


@pytest.mark.parametrize("member", MEMBERS)
def test_every_abstract_member_is_answered_or_refused(made, member):
    if member == "range_pop":
        made.range_push("here")
    state, refused = torch.get_rng_state(), ""
    try:
        found = getattr(made, member)
        if callable(found) and member not in ("Stream", "Event"):
            found = found(*ARGUMENTS.get(member, ()))
    except AccelError as error:
        refused = str(error)
    torch.set_rng_state(state)
    name = made.accelerator.name
    assert bool(refused) == (member in REFUSED[name]), refused
    if refused:
        assert repr(name) in refused
        return
    assert (found is None) == (member in SILENT)
    if member.endswith("Tensor"):
        assert found.device == HOST
        assert found.shape == (1,)


def test_what_our_backend_can_do_is_not_refused():
    accelerator = accel.get_accelerator()
    made = adapter.adapted(accelerator)
    assert isinstance(made, DeepSpeedAccelerator)
    assert made.communication_backend_name() == "gloo"
    assert made.device() == made.device(0) == HOST
    assert made.current_device() == 0
    held = made.memory_allocated()
    kept = torch.ones(1 << 20)
    assert made.memory_cached() - held >= kept.nbytes
    assert made.max_memory_cached() >= made.memory_cached()
    assert made.supported_dtypes() == accelerator.supported_dtypes()
    assert made.is_fp64_supported()
    event = made.Event(enable_timing=True)
    with made.stream(made.Stream()), made.stream(None):
        event.record()
    assert event.query()
    for dtype, kind in {torch.bfloat16: "BFloat16", torch.int64: "Long"}.items():
        assert getattr(made, f"{kind}Tensor")([1, 2]).dtype == dtype
    with pytest.raises(UnsupportedCapability, match="pinned_memory"):
        made.pin_memory(torch.ones(1))
    with pytest.raises(AttributeError, match="no_such_thing"):
        made.no_such_thing  # noqa: B018


def test_a_member_that_a_newer_deepspeed_adds_is_refused_when_called(made, monkeypatch):
    def sense_of_humour(self):
        raise NotImplementedError

    grown = DeepSpeedAccelerator.__abstractmethods__ | {"sense_of_humour"}
    monkeypatch.setattr(DeepSpeedAccelerator, "sense_of_humour", sense_of_humour, raising=False)
    monkeypatch.setattr(DeepSpeedAccelerator, "__abstractmethods__", grown)
    newer = adapter.adapted(made.accelerator)
    with pytest.raises(UnsupportedCapability, match=rf"{deepspeed.__version__}.*sense_of_humour"):
        newer.sense_of_humour()


@pytest.mark.usefixtures("_left_as_it_was")
def test_deepspeed_runs_on_it_from_then_on(made):
    given = set_deepspeed_accelerator(made.accelerator)
    assert get_accelerator() is given
    assert given.accelerator is made.accelerator
    assert given.op_builder_dir() == op_builder.__name__
    taken = deepspeed.ops.adam.fused_adam.FusedAdamBuilder  # when DeepSpeed was imported
    assert taken is op_builder.FusedAdamBuilder is given.get_op_builder("FusedAdamBuilder")
    inference = op_builder.InferenceBuilder
    assert inference().load() is not None
    assert deepspeed.ops.transformer.inference.op_binding.base.InferenceBuilder is inference
    known = deepspeed.ops.__compatible_ops__
    assert known["transformer_inference"]
    assert not known["QuantizerBuilder"]
    again = set_deepspeed_accelerator(made.accelerator)
    assert again.get_op_builder("FusedAdamBuilder") is taken


def test_builders_are_answered_by_name(made):
    transformer = made.create_op_builder("TransformerBuilder")
    assert isinstance(transformer, accel.deepspeed.TransformerBuilder)
    with pytest.raises(AttributeError, match=r"transformer_layer_fp32.*accel\.deepspeed"):
        transformer.load().create_transformer_layer_fp32  # noqa: B018
    for family in ("LinearBuilder", "TilingBuilder"):  # accel's own
        assert made.get_op_builder(family) is made.accelerator.get_op_builder(family)
    for name in ("QuantizerBuilder", "ShareMemCommBuilder", "NoSuchBuilder"):
        absent = made.create_op_builder(name)
        assert isinstance(absent, op_builder.OpBuilder)
        assert not absent.is_compatible()
        with pytest.raises(UnsupportedCapability, match=f"{name}.*{made.accelerator.name}"):
            absent.load()


@pytest.mark.usefixtures("_left_as_it_was")
def test_deepspeeds_own_bindings_compute_by_our_ops_or_by_torch(made):
    with accel.ops.use(exact=False):
        set_deepspeed_accelerator()
        from deepspeed.ops.transformer.inference.op_binding import base, rms_norm, vector_add

        base.BaseOp.inference_module = None
        x, gamma = torch.randn(3, 8), torch.randn(8)
        found = rms_norm.RMSNormOp()(x, gamma, 1e-6)
        assert torch.equal(found, accel.ops.rms_norm(x, gamma, eps=1e-6))
        assert torch.equal(vector_add.VectorAddOp()(x, x, 0.5), 0.5 * x + x)
        base.BaseOp.inference_module = None


def test_a_device_without_a_communication_is_refused():
    before = real_accelerator.ds_accelerator
    lonely = testing.fake_backend("lonely", device_type="privateuseone")
    with testing.installed(lonely), pytest.raises(UnsupportedCapability, match="collectives"):
        set_deepspeed_accelerator("lonely")
    assert real_accelerator.ds_accelerator is before
