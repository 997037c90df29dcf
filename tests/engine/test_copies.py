"""Copies of a model in the engine's hands, and several such models in one process."""

import copy
import io
import pickle

import pytest
import torch
from measures import is_exact, rollout

import accel
from accel.engine.forward import installed


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "save": saved,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_is_whole_independent_and_exact(model, copied):
    ours = accel.hybridize(model).model
    made = rollout(model)
    other = copied(model)
    theirs = accel.plan(other).model
    assert theirs.generate.cache is not ours.generate.cache
    assert theirs.generate.cache.bytes == 0 < ours.generate.cache.bytes
    assert {installed(m).module for m in other.modules() if installed(m)} <= set(other.modules())
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(rollout(other).logprobs, made.logprobs)
    assert is_exact(other)


def test_two_engines_work_at_once(llama, gpt2):
    engines = [accel.HybridEngine(llama()), accel.HybridEngine(gpt2())]
    alone = [rollout(engine.model).logprobs for engine in engines]
    with engines[0].generating(), engines[1].generating():
        assert torch.equal(rollout(engines[1].model).logprobs, alone[1])
        assert torch.equal(rollout(engines[0].model).logprobs, alone[0])
        caches = [engine.model.generate.cache for engine in engines]
        assert all(cache.bytes for cache in caches)
