"""LoRA fused for a rollout: beside the weights, for as long as it lasts, and never left behind."""

import copy
import weakref

import adapters
import models
import pytest
import torch
from agreement import assert_agree
from measures import batch

import accel
from accel.engine import call as calls
from accel.engine.modules import lora
from accel.errors import ConfigError

FUSED = {"exact": False, "fuse_lora": True}
KINDS = {"PEFT": adapters.with_peft, "DeepSpeed-Chat": adapters.with_chat_lora}

pytestmark = pytest.mark.usefixtures("_one_thread")


def rolled(engine, **asked):
    ids, mask = batch()
    asked = {"max_new_tokens": 6, "do_sample": True, "seed": 1, "return_logprobs": True, **asked}
    return engine.generate(ids, mask, **asked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_rollout_is_that_of_the_weights_with_the_adapter_added(kind, dtype):
    model = KINDS[kind](models.llama()).to(dtype)
    want = rolled(
        accel.HybridEngine(adapters.merged(model, models.llama()), config={"exact": False})
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = accel.HybridEngine(model, config=FUSED)
    made = rolled(engine)
    assert torch.equal(made.sequences, want.sequences)
    assert torch.equal(made.logprobs, want.logprobs)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    plain = rolled(accel.HybridEngine(models.llama().to(dtype), config={"exact": False}))
    assert torch.equal(rolled(engine, adapter=None).logprobs, plain.logprobs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_rollouts_values_are_trainings_but_for_a_rounding(kind):
    engine = accel.HybridEngine(KINDS[kind](models.llama()).to(torch.bfloat16), config=FUSED)
    made = rolled(engine)
    scored = engine.logprobs(made.sequences, made.attention_mask)[:, -6:]
    assert not torch.equal(made.logprobs, scored)
    assert "rounded once to the weights' dtype" in str(engine.plan)
    wide = accel.HybridEngine(KINDS[kind](models.llama()).double(), config=FUSED)
    made = rolled(wide)
    assert_agree(made.logprobs, wide.logprobs(made.sequences, made.attention_mask)[:, -6:].detach())


def test_adapters_that_are_active_at_once_are_fused_together():
    model = adapters.several(torch.float64)
    model.base_model.set_adapter(["default", "second"])
    engine = accel.HybridEngine(model, config=FUSED)
    made = rolled(engine)
    want = engine.logprobs(made.sequences, made.attention_mask)[:, -6:].detach()
    assert_agree(made.logprobs, want)


@pytest.fixture
def kept(monkeypatch):
    """How often weights were fused, and references to them."""
    made, fuse = [], lora._fuse

    def watched(weight, adapters):
        found = fuse(weight, adapters)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(lora, "_fuse", watched)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_fused_weights_last_as_long_as_their_rollout(kind, kept):
    engine = accel.HybridEngine(KINDS[kind](models.llama()), config=FUSED)
    for rollouts in (1, 2):
        rolled(engine)
        assert len(kept) % rollouts == 0
        assert {ref() for ref in kept} == {None}
    layers = len(kept) // 2
    with engine.generating():
        rolled(engine)
        rolled(engine)
        assert len(kept) == 3 * layers
        assert engine.plan.model.generate.fused.bytes > 0
    assert {ref() for ref in kept} == {None}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", KINDS)
def test_a_fused_rollout_that_is_stopped_leaves_nothing_behind(kind, error, kept):
    model = KINDS[kind](models.llama())
    engine = accel.HybridEngine(model, config=FUSED)
    want = rolled(engine)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps = []

    def stop():
        steps.append(calls.current().fused.bytes)
        if len(steps) == 3:
            raise error
        return False

    with engine.generating(), pytest.raises(error):
        rolled(engine, abort=stop)
    assert steps[-1] > 0, "it was stopped while they were there"
    assert {ref() for ref in kept} == {None}
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(rolled(engine).logprobs, want.logprobs)


def test_a_changed_adapter_is_seen_by_the_next_fused_rollout():
    model = adapters.with_peft(models.llama())
    engine = accel.HybridEngine(model, config=FUSED)
    before = rolled(engine).logprobs
    adapters.drawn((p for n, p in model.named_parameters() if "lora_B" in n), seed=3)
    want = rolled(
        accel.HybridEngine(adapters.merged(model, models.llama()), config={"exact": False})
    ).logprobs
    assert torch.equal(rolled(engine).logprobs, want)
    assert not torch.equal(want, before)


def test_fusing_is_refused_by_an_exact_engine():
    with pytest.raises(ConfigError, match=r"fuse_lora=True.*exact=True refuses it"):
        accel.HybridEngineConfig(fuse_lora=True)


def test_a_copy_of_a_model_has_no_fused_weights_of_its_own():
    model = adapters.with_chat_lora(models.llama())
    engine = accel.HybridEngine(model, config=FUSED)
    with engine.generating():
        rolled(engine)
        other = copy.deepcopy(model)
        assert other.generate.fused.bytes == 0 < model.generate.fused.bytes
