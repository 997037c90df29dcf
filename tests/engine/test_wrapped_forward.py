"""A model's forward that somebody has wrapped since it was hybridized, as trainers do."""

import functools
import types

import models
import pytest
import snapshots
import torch
from measures import batch, rollout

import accel
import accel_cpu.plugin
from accel import testing
from accel.errors import IgnoredWarning, UnsupportedModelError


def wrap(model):
    """As TRL adds a head: a method around the forward it found. Returns what counts its calls."""
    inner, calls = model.forward, []

    @functools.wraps(type(model).forward)
    def forward(self, *args, **kwargs):
        calls.append(1)
        return inner(*args, **kwargs)

    model.forward = types.MethodType(forward, model)
    return calls


def answered(engine):
    """A rollout's log-probabilities, the same tokens' values in training, and a loss."""
    made = rollout(engine)
    values = engine.logprobs(made.sequences, made.attention_mask)[:, -made.logprobs.shape[1] :]
    ids, mask = batch()
    return made.logprobs, values.detach(), engine(ids, mask, labels=ids).loss.detach()


@pytest.mark.parametrize("name", models.MAKERS)
def test_a_wrapped_forward_is_called_and_serves_to_the_same_bits(name):
    engine = accel.HybridEngine(models.small(name))
    want = answered(engine)
    calls = wrap(engine.model)
    found = answered(engine)
    assert len(calls) > 2
    assert all(map(torch.equal, found, want))
    assert torch.equal(found[0], found[1])


def test_a_wrapper_that_enters_autocast_is_told_and_changes_no_bit(llama):
    """As accelerate's for mixed precision does, also inside a rollout."""
    with testing.installed(accel_cpu.plugin):  # in which nobody was told before
        engine = accel.HybridEngine(llama())
        want = answered(engine)
        engine.model.forward = torch.autocast("cpu", torch.bfloat16)(engine.model.forward)
        with pytest.warns(IgnoredWarning, match="autocast is ignored"):
            found = answered(engine)
    assert all(map(torch.equal, found, want))


@pytest.mark.parametrize("what", [rollout, lambda engine: engine.logprobs(batch()[0])])
def test_a_forward_in_the_place_of_ours_is_told_from_one_around_it(llama, what):
    engine = accel.HybridEngine(llama())
    engine.model.forward = lambda *args, call=None, **kwargs: {"logits": None}
    with pytest.raises(UnsupportedModelError, match=r"replaced since.*gave a dict.*hybridize"):
        what(engine)


@pytest.mark.parametrize("undo", [accel.restore, accel.hybridize])
def test_a_wrapped_forward_is_never_left_around_a_restored_model(llama, undo):
    model = llama()
    accel.hybridize(model)
    found = model.forward
    wrap(model)
    before = snapshots.modules(model)
    with pytest.raises(UnsupportedModelError, match="forward"):
        undo(model)
    assert snapshots.changed(before, snapshots.modules(model)) == []
    model.forward = found
    undo(model)
