"""Training goes on as if nothing had been generated, a thousand times over."""

import random

import models
import pytest
import snapshots
import torch
from midway import IDS, MASK, trained

import accel
from accel.engine.config import HybridEngineConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # PEFT's
    pytest.mark.usefixtures("_one_thread"),
]


@pytest.fixture(params=models.MAKERS)
def engine(request):
    return trained(request.param)


def one_rollout(engine, drawn):
    engine.generate(
        IDS, MASK, max_new_tokens=drawn.randint(1, 3), do_sample=drawn.random() < 0.5,
        adapter=drawn.choice(("active", None)), return_logprobs=drawn.random() < 0.5,
    )  # fmt: skip


def two_rollouts(engine, drawn):
    with engine.generating():
        one_rollout(engine, drawn)
        one_rollout(engine, drawn)


def scored(engine, drawn):
    adapter = drawn.choice(("active", "default", None))
    with torch.set_grad_enabled(drawn.random() < 0.5):
        engine.logprobs(IDS, MASK, adapter=adapter, entropy=drawn.random() < 0.5)


def released(engine, drawn):
    engine.release_cache()


def switch(engine, times):
    """The engine used in another way ``times`` times, its mode another now and then."""
    drawn = random.Random(0)
    for _ in range(times):
        mode = drawn.random() < 0.5
        engine.train(mode)
        drawn.choice((one_rollout, one_rollout, two_rollouts, scored, released))(engine, drawn)
        assert {module.training for module in engine.model.modules()} == {mode}
    engine.train()


def test_nothing_changes_in_a_thousand_switches(engine):
    before = snapshots.training_state(engine)
    switch(engine, 1000)
    assert snapshots.changed(before, snapshots.training_state(engine)) == []


def test_the_next_step_is_that_of_an_engine_that_never_generated(engine):
    name = engine.plan.policy.name
    other = trained(name)
    switch(engine, 20)
    ends = []
    for each in (engine, other):
        torch.manual_seed(1)  # LoRA's dropout draws
        each.backward(each(IDS, MASK, labels=IDS).loss)
        each.step()
        ends.append((snapshots.parameters(each.model), snapshots.random_states()))
    assert ends[0] == ends[1]


def test_a_change_would_be_seen(engine):
    """Of the comparison these tests rest on: what it would notice."""
    before = snapshots.training_state(engine)
    module = engine.model.get_submodule("base_model.model.lm_head")
    undone = []
    with torch.no_grad():
        module.weight.view(torch.int32)[0, 0] ^= 1  # the last bit of one number
    undone.append("parameters")
    torch.rand(1)
    undone.append("random")
    module.register_forward_hook(print)
    undone.append("modules")
    next(iter(engine.optimizer.state.values()))["step"] += 1
    undone.append("optimizer")
    with torch.no_grad(), accel.ops.use(exact=False):
        after = snapshots.training_state(engine)
    undone.append("surroundings")
    found = snapshots.changed(before, after)
    assert {where if isinstance(where, str) else where[0] for where in found} == set(undone)


def test_training_and_evaluation_mode_may_be_set_again_and_again(engine):
    before = snapshots.training_state(engine)
    for _ in range(3):
        assert engine.eval() is engine
    assert not any(module.training for module in engine.model.modules())
    for _ in range(3):
        assert engine.train() is engine
    assert snapshots.changed(before, snapshots.training_state(engine)) == []


def test_the_cache_is_given_back_when_generating_ends(engine):
    cache = engine.plan.model.generate.cache
    with engine.generating():
        engine.generate(IDS, MASK, max_new_tokens=2)
        assert cache.bytes > 0
    assert cache.bytes == 0


def test_the_cache_is_kept_between_rollouts_that_release_it_elsewhere():
    engine = trained("llama", HybridEngineConfig(release_inference_cache=True))
    cache = engine.plan.model.generate.cache
    with engine.generating():
        engine.generate(IDS, MASK, max_new_tokens=2)
        assert cache.bytes > 0
    engine.generate(IDS, MASK, max_new_tokens=2)
    assert cache.bytes == 0
