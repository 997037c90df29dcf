"""Every architecture in its users' habits: adapters, checkpointed layers, copies, restoring."""

import copy
import pickle

import measures
import models
import pytest
import torch
from measures import batch, hybrid, is_exact, seeded

import accel

pytestmark = [
    pytest.mark.usefixtures("_one_thread"),
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing:FutureWarning"),
]
EVERYWHERE = {"target_modules": "all-linear", "fan_in_fan_out": False}


@pytest.fixture(params=models.ARCHITECTURES)
def model(request):
    return models.small(request.param, initializer_range=0.15)


def test_adapters_on_every_projection_give_transformers_tokens_and_are_exact(model):
    adapted = models.with_lora(model, **EVERYWHERE)
    ids, asked = seeded((2, 9)), {"max_new_tokens": 12, "do_sample": False}
    want = adapted.generate(input_ids=ids, **asked)
    with adapted.disable_adapter():
        plain = adapted.generate(input_ids=ids, **asked)
    accel.hybridize(adapted)
    assert torch.equal(adapted.generate(input_ids=ids, **asked), want)
    assert torch.equal(adapted.generate(input_ids=ids, adapter=None, **asked), plain)
    assert is_exact(adapted)


def gradients(model):
    ids, mask = batch()
    model.train().zero_grad()
    model(ids, attention_mask=mask, labels=ids.where(mask.bool(), -100)).loss.backward()
    return [parameter.grad for parameter in model.parameters()]


def test_checkpointed_layers_have_the_same_gradients(model):
    model = hybrid(model)
    want = gradients(model)
    model.gradient_checkpointing_enable()
    found = gradients(model)
    assert all(map(torch.equal, found, want))


def test_copies_say_the_same_and_a_restored_model_is_transformers_own(model):
    ids = seeded((2, 9))
    before = model(ids).logits
    accel.hybridize(model)
    want = measures.scores(model)
    for made in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(measures.scores(made), want)
    accel.restore(model)
    assert torch.equal(model(ids).logits, before)
