"""Encoders in the engine's hands train: with heads, adapters, dropout, hooks."""

import copy

import encoders
import measures
import pytest
import torch
from agreement import assert_agree
from encoders import apart, small, step
from measures import batch, hybrid, seeded
from peft import LoraConfig, get_peft_model

import accel

pytestmark = pytest.mark.usefixtures("_one_thread")


@pytest.fixture(params=encoders.NAMES)
def name(request):
    return request.param


DROPOUTS = {
    "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "roberta": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    "distilbert": ("dropout", "attention_dropout"),
    "clip_text": ("attention_dropout",),
}


@pytest.mark.parametrize(
    ("name", "rate"), [(name, rate) for name in DROPOUTS for rate in DROPOUTS[name]]
)
def test_dropout_acts_in_training_alone_and_by_torchs_seed(name, rate):
    model = hybrid(small(name, **{rate: 0.5}))
    encoder = model.get_submodule(accel.plan(model).spec.encoder)
    h = model.get_input_embeddings()(seeded((2, 5))).detach()

    def states(seed):
        torch.manual_seed(seed)
        return encoder(h).last_hidden_state

    assert torch.equal(states(0), states(1))
    model.train()
    assert torch.equal(states(0), states(0))
    assert not torch.equal(states(0), states(1))


TARGETS = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "clip_text": ["q_proj", "v_proj"],
}


def test_lora_of_peft_trains_as_it_does_in_transformers(name):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[name])
    model = get_peft_model(small(name), config)
    generator = torch.Generator().manual_seed(3)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            parameter.data.normal_(std=0.1, generator=generator)
    with measures.Widened():
        wide = copy.deepcopy(model).double()
        wide.base_model.model.set_attn_implementation("eager")
        exact = step(wide)
    ours = hybrid(model)
    assert apart(step(ours), step(copy.deepcopy(model)), exact) == {}
    assert len(exact) == 1 + 2 * 2 * 2  # two layers, two targets, A and B
    ids, mask = batch()
    adapted = ours(ids, attention_mask=mask).last_hidden_state
    with ours.disable_adapter():
        plain = ours(ids, attention_mask=mask).last_hidden_state
    assert not torch.equal(plain, adapted)
    assert torch.equal(plain, hybrid(small(name))(ids, attention_mask=mask).last_hidden_state)


HEADS = {
    "bert": ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"),
    "roberta": ("ForSequenceClassification", "ForQuestionAnswering"),
    "distilbert": ("ForMaskedLM", "ForSequenceClassification"),
    "clip_text": ("ModelWithProjection",),
}


@pytest.mark.parametrize(("name", "head"), [(name, head) for name in HEADS for head in HEADS[name]])
def test_models_with_heads_give_the_same_and_train(name, head):
    rate = {"seq_classif_dropout": 0.0} if name == "distilbert" else {}
    model, ids = small(name, head, **rate), seeded((2, 9))
    first = model(ids)[0].detach()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine, losses = accel.HybridEngine(model, optimizer).train(), []
    assert_agree(engine(ids)[0].detach(), first, operations=64)
    for _ in range(5):
        losses.append(engine.backward((engine(ids)[0] - 1).square().mean()).item())
        engine.step()
    assert losses[-1] < losses[0]


def test_every_module_with_parameters_is_called_with_its_hooks(name):
    model, seen = small(name), []
    spec = accel.plan(model).spec
    names = [
        path for path, module in model.get_submodule(spec.layers).named_modules()
        if module._parameters or path.endswith(spec.layer.act)
    ]  # fmt: skip
    ours, ids = hybrid(model), seeded((2, 9))
    want = ours(ids).last_hidden_state
    for path in names:
        part = ours.get_submodule(f"{spec.layers}.{path}")
        part.register_forward_hook(lambda *given, path=path: seen.append(path))
    found = ours(ids).last_hidden_state
    assert sorted(seen) == sorted(names)
    assert len(names) == 2 * 9  # six projections, two norms, an activation
    assert_agree(found, want, operations=64)
