"""TRL's GRPOTrainer attached: it trains on what was sampled, and has old values of the rollout."""

import copy

import models
import pytest
import torch
from agreement import gamma
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

import accel
from accel.engine.generation.generate import Generate
from accel.errors import UnsupportedCapability, UnsupportedModelError
from accel.integrations import trl as integration

pytest.importorskip("trl", reason="TRL is not installed")
pytestmark = pytest.mark.usefixtures("_one_thread")

import trl_trainers as made  # noqa: E402
from trl.trainer import utils  # noqa: E402

# Settings of a trainer, and whether the rollout knows the old values then.
OLD = {
    "several iterations": ({"num_iterations": 2}, True),
    "misaligned": ({"steps_per_generation": 2, "gradient_accumulation_steps": 1}, True),
    "temperature": ({"num_iterations": 2, "temperature": 0.7}, True),
    "fewer tokens": ({"num_iterations": 2, "top_k": 5}, True),
    "not exact": ({"num_iterations": 2, "exact": False}, False),
    "fewer, temperature": ({"num_iterations": 2, "temperature": 0.7, "top_k": 5}, False),
}


@pytest.fixture
def _one_thread():
    torch.set_num_threads(1)


def watched(trainer, calls):
    """``calls`` gets (old values were asked for, what was found) of every scoring."""
    inner = trainer._get_per_token_logps_and_entropies

    def watch(*args, **kwargs):
        found = inner(*args, **kwargs)
        calls.append((torch.is_grad_enabled(), found[0].detach().clone()))
        return found

    trainer._get_per_token_logps_and_entropies = watch


@pytest.mark.parametrize("case", OLD)
def test_old_values_are_the_rollouts_where_it_knows_them(tmp_path, case):
    settings, known = OLD[case]
    config = {"exact": settings.get("exact", True)}
    settings = {name: value for name, value in settings.items() if name != "exact"}
    trainer = made.trainer(tmp_path, made.model(), **settings)
    attached, calls = integration.attach(trainer, config), []
    watched(trainer, calls)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    assert (attached.from_rollout > 0, attached.computed > 0) == (known, not known)
    after = trainer.model.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    # The first update is by the weights that sampled: the ratio is exactly 1.
    (grad, old), (_, new) = calls[:2]
    assert not grad
    if not config["exact"]:
        return
    rows = {tuple(row.tolist()) for row in old}  # TRL has shuffled them, and split them in steps
    assert {tuple(row.tolist()) for row in new} <= rows


def test_the_reference_is_scored_beside_the_rollouts_values(tmp_path):
    """It is a copy of the adapter, which the trainer adds: at first the same, bit for bit."""
    model = models.with_lora(made.model(), lora_dropout=0.0)
    trainer = made.trainer(tmp_path, model, num_iterations=2, beta=0.1)
    attached, calls = integration.attach(trainer), []
    watched(trainer, calls)
    trainer.train()
    assert (attached.from_rollout, attached.computed) == (1, 0)
    (_, old), (_, reference) = calls[:2]
    assert torch.equal(old, reference)
    assert made.logged(trainer, "kl")[0] == 0
    assert made.logged(trainer, "kl")[1] > 0, "the second update is by other weights"


def test_of_one_update_there_are_no_old_values(tmp_path):
    trainer = made.trainer(tmp_path, made.model())
    attached = integration.attach(trainer)
    trainer.train()
    assert (attached.from_rollout, attached.computed) == (0, 0)


def test_tokens_that_are_not_the_rollouts_are_scored(tmp_path):
    """As a tool's are."""
    trainer = made.trainer(tmp_path, made.model(), num_iterations=2)
    attached = integration.attach(trainer)
    roll = trainer._generate_single_turn

    def answered(*args, **kwargs):
        ids, values = roll(*args, **kwargs)
        return [[1, *row[1:]] for row in ids], values

    trainer._generate_single_turn = answered
    trainer.train()
    assert attached.from_rollout == 0
    assert attached.computed > 0


@pytest.mark.parametrize("when", ["hybridized before", "attached alone"])
@pytest.mark.parametrize("lora", [False, True])
def test_it_trains_as_by_trls_own_head(tmp_path, monkeypatch, when, lora):
    made.model().save_pretrained(tmp_path)  # of which TRL makes the reference

    def trained(ours):
        model = LlamaForCausalLM.from_pretrained(tmp_path)
        if lora:
            config = LoraConfig(r=4, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
            torch.manual_seed(0)
            model = get_peft_model(model, config)
        if ours and when == "hybridized before":
            accel.hybridize(model)
        trainer = made.trainer(tmp_path, model, beta=0.1, optim="sgd", learning_rate=0.1)
        made.scripted(trainer)
        if ours:
            integration.attach(trainer)
            monkeypatch.setattr(utils, "_ChunkedLogProbFunction", None)  # it is not TRL's
        trainer.train()
        return trainer

    own, ours = trained(False), trained(True)
    for name in ("loss", "grad_norm", "entropy"):
        for one, other in zip(made.logged(own, name), made.logged(ours, name), strict=True):
            assert abs(one - other) <= gamma(torch.float32, 4096) * max(1.0, abs(one)), name
    assert all(norm > 0 for norm in made.logged(ours, "grad_norm")), "it has learned"
    assert made.logged(ours, "kl")[0] == 0.0, "the reference is the policy, bit for bit"


def test_the_forward_without_the_head_is_what_it_was(tmp_path):
    model = made.model()
    accel.hybridize(model)
    ids = torch.randint(5, 90, (2, 6))
    want = model(ids, labels=ids)
    trainer = made.trainer(tmp_path, model)
    integration.attach(trainer)
    found = model(ids, labels=ids)
    assert torch.equal(found.loss, want.loss)
    assert torch.equal(found.logits, want.logits)
    assert isinstance(model.generate, Generate)
    with pytest.raises(UnsupportedCapability, match="shift_labels"):
        model(ids, fused_lm_head=True, shift_labels=ids)
    with pytest.raises(UnsupportedModelError, match="was wrapped"):
        accel.restore(model)


@pytest.mark.parametrize(
    ("settings", "want"),
    [({"cast_lm_head_to_fp32": True}, "cast_lm_head_to_fp32=False"), ({}, "TRL 1.16")],
)
def test_what_it_was_not_tested_with_is_refused(tmp_path, monkeypatch, settings, want):
    trainer = made.trainer(tmp_path, made.model(), **settings)
    if not settings:
        monkeypatch.setattr(integration, "version", lambda name: "2.0.1")
    before = dict(vars(trainer.model))
    with pytest.raises(UnsupportedCapability, match=want):
        integration.attach(trainer)
    assert vars(trainer.model) == before
    assert "_get_per_token_logps_and_entropies" not in vars(trainer)


def test_another_trainer_is_refused(tmp_path):
    with pytest.raises(UnsupportedCapability, match="a GRPOTrainer, found object"):
        integration.attach(object())


def test_it_is_attached_once(tmp_path):
    trainer = made.trainer(tmp_path, made.model())
    integration.attach(trainer)
    with pytest.raises(UnsupportedCapability, match="attach once"):
        integration.attach(trainer)


def test_rollouts_that_ranks_share_are_refused(tmp_path):
    trainer = made.trainer(tmp_path, made.model())
    with pytest.raises(UnsupportedCapability, match="inference_tp_size=2 has ranks roll out"):
        integration.attach(trainer, {"inference_tp_size": 2})
    assert "generate" not in vars(trainer.model)
    assert "_get_per_token_logps_and_entropies" not in vars(trainer)
