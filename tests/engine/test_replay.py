"""A decode step is recorded once and replayed: to the same bits, and only where nobody watches."""

from contextlib import nullcontext, suppress
from types import SimpleNamespace

import mixtures
import models
import pytest
import torch
from agreement import assert_agree
from measures import batch, seeded

import accel
from accel.engine.generation import replay
from accel.errors import UnsupportedCapability

pytestmark = pytest.mark.usefixtures("_one_thread")
ASKED = {
    "max_new_tokens": 12, "do_sample": True, "seed": 3, "eos_token_id": [5, 17, 40, 80],
    "return_logprobs": True, "output_logits": True,
}  # fmt: skip


@pytest.fixture
def steps(monkeypatch):
    """How often a step was run, recorded and replayed."""
    counted = {"_run": 0, "_recorded": 0, "_replayed": 0}

    def count(name):
        method = getattr(replay.TokenForward, name)

        def counting(self, *args):
            counted[name] += 1
            return method(self, *args)

        monkeypatch.setattr(replay.TokenForward, name, counting)

    for name in counted:
        count(name)
    return counted


def rollout(model, graphs, **asked):
    engine = accel.HybridEngine(model, config={"enable_cuda_graph": graphs})
    return engine.generate(*batch(), **{**ASKED, **asked})


def assert_same(one, other):
    for name in ("sequences", "attention_mask", "logprobs", "processed_logprobs"):
        assert torch.equal(one[name], other[name])
    assert all(map(torch.equal, one.logits, other.logits))


@pytest.mark.parametrize("name", [*models.MAKERS, *models.ARCHITECTURES])
def test_replayed_steps_have_the_bits_of_steps_that_run(name, steps):
    model = models.small(name, initializer_range=0.15)
    want = rollout(model, False)
    assert steps["_recorded"] == 0
    assert_same(rollout(model, None), want)
    assert steps["_replayed"] > 1
    if name == "llama":
        assert steps["_recorded"] > 1, "some row ended"


@pytest.mark.parametrize("name", mixtures.CASES)
def test_so_have_mixtures_of_experts(name, steps):
    model = mixtures.made(name)
    assert_same(rollout(model, None), rollout(model, False))
    assert steps["_replayed"] > 1


def test_so_have_adapters_waves_and_prompts_that_are_alike(steps):
    model = models.with_lora(models.llama(initializer_range=0.15))
    for settings in ({}, {"adapter": None}, {"num_return_sequences": 3}):
        assert_same(rollout(model, None, **settings), rollout(model, False, **settings))
    room = 2 * 2 * 2 * 64 * 16 * 4 * 2  # two sequences in a bucket
    found = [
        accel.HybridEngine(model, config={"enable_cuda_graph": g, "kv_cache_bytes": room})
        .generate(*batch(), **ASKED)
        for g in (None, False)
    ]  # fmt: skip
    assert_same(*found)
    assert steps["_replayed"] > 8


def test_weights_changed_between_rollouts_are_seen(llama):
    model = llama(initializer_range=0.15)
    engine = accel.HybridEngine(model)
    engine.generate(*batch(), **ASKED)
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1
    assert_same(engine.generate(*batch(), **ASKED), rollout(model, False))


def test_modules_that_are_watched_are_called(llama, steps):
    """A step of one token calls them; a replay would not."""
    engine = accel.HybridEngine(llama())
    seen = []
    handle = engine.model.model.layers[1].register_forward_hook(lambda *_: seen.append(1))
    asked = {"max_new_tokens": 6, "do_sample": False}
    engine.generate(seeded((1, 4)), **asked)
    assert len(seen) == 6
    assert steps["_recorded"] == 0
    handle.remove()
    engine.generate(seeded((1, 4)), **asked)
    assert len(seen) == 6
    assert steps == {"_run": 7, "_recorded": 1, "_replayed": 3}


@pytest.mark.parametrize("make", [models.llama, lambda: mixtures.made("mixtral")])
def test_steps_that_read_values_on_the_host_are_run(make, steps):
    """As eager torch's attention and experts do, which serve where a kernel of ours does not: a
    replay would go on with the lengths of the step that was recorded."""
    found = []
    for graphs in (None, False):
        config = {"exact": False, "enable_cuda_graph": graphs}
        engine = accel.HybridEngine(make().double(), config=config)
        found.append(engine.generate(*batch(), **ASKED))
    assert steps["_recorded"] == 0
    assert_same(*found)
    made = found[0]
    scored = engine.logprobs(made.sequences, made.attention_mask).detach()
    assert_agree(made.logprobs, scored[:, -made.logprobs.shape[1] :])


def test_graphs_are_those_of_the_model_s_device(llama, monkeypatch):
    model = llama()
    other = torch.device("meta")
    assert replay.graphs_for(model, other, None) is None
    with pytest.raises(UnsupportedCapability, match=r"on meta, and graphs are those of .*'cpu'"):
        replay.graphs_for(model, other, True)
    acc = accel.get_accelerator()
    assert replay.graphs_for(model, torch.device("cpu"), True) is acc
    monkeypatch.setattr(type(acc), "refusal", lambda *_: accel.Refusal("graphs", "a", "b", "c"))
    assert replay.graphs_for(model, torch.device("cpu"), None) is None
    with pytest.raises(UnsupportedCapability, match="graphs"):
        replay.graphs_for(model, torch.device("cpu"), True)


def test_what_a_device_has_not_run_yet_it_does_not_record():
    """A kernel for as many rows may have to be compiled, which no device does while it records;
    where work runs as it is recorded, it may be."""

    def called(captures_run, counts):
        made = []
        acc = SimpleNamespace(
            captures_run=captures_run, create_graph=object,
            capture_to_graph=lambda graph: made.append("record") or nullcontext(),
            replay_graph=lambda graph: made.append("replay"),
        )  # fmt: skip
        forward = replay.TokenForward(lambda token, call: made.append("run"), None, acc)
        for count in counts:
            with suppress(AssertionError):  # nothing is projected
                forward(torch.zeros(count, dtype=torch.int64))
            made.append(count)
        return made

    once = ["run", 3, "record", "run", "replay", 3]
    assert called(False, [3, 3, 2, 2]) == [*once, "run", 2, "record", "run", "replay", 2]
    assert called(True, [3, 3, 2]) == ["run", 3, "record", "run", 3, "record", "run", 2]


def test_a_model_on_another_device_than_the_current_is_not_recorded(llama, monkeypatch):
    model, acc = llama(), accel.get_accelerator()
    monkeypatch.setattr(type(acc), "current_device", lambda self: 1)
    there = torch.device(acc.device_type, 0)
    assert replay.graphs_for(model, there, None) is None
    with pytest.raises(UnsupportedCapability, match=r"current device, number 1.*set_device\(0\)"):
        replay.graphs_for(model, there, True)
