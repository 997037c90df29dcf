"""Dropout acts in a training step as transformers has it act, and nowhere else."""

import models
import pytest
import torch
from measures import batch, hybrid, seeded

import accel

pytestmark = pytest.mark.usefixtures("_one_thread")

DROPOUTS = {
    "branches": ("gpt2", {"resid_pdrop": 0.3}, None),
    "embedding": ("gpt2", {"embd_pdrop": 0.3}, None),
    "probabilities": ("gpt2", {"attn_pdrop": 0.3}, None),
    "probabilities of groups": ("llama", {"attention_dropout": 0.3}, None),
    "branches without modules": ("bloom", {"hidden_dropout": 0.3, "n_layer": 1}, None),
    "the sum of branches": ("falcon", {"hidden_dropout": 0.3}, None),
    "LoRA": ("llama", {}, 0.3),
    "LoRA on a transposed weight": ("gpt2", {}, 0.3),
}


def dropping(case):
    name, config, lora = DROPOUTS[case]
    model = models.small(name, num_hidden_layers=1, initializer_range=0.15, **config)
    return model if lora is None else models.with_lora(model, lora_dropout=lora)


@pytest.mark.parametrize("case", DROPOUTS)
def test_a_training_step_drops_as_transformers_does(case):
    """The logits' mean square distance from where they lie on average, and the loss, have over 150
    draws each the same mean to less than 5 standard errors: by chance once in a million seeds."""
    model = dropping(case).train()
    ids, draws = seeded((1, 8)), 150
    torch.manual_seed(5)
    with torch.no_grad():
        theirs, ours = (
            torch.stack([m(input_ids=ids).logits.double()[0, :-1] for _ in range(draws)])
            for m in (model, hybrid(model))
        )
    centre = theirs.mean(0)
    assert (ours[0] - ours[1]).abs().max() > 0
    for measured in (
        lambda logits: (logits - centre).square().mean((1, 2)),
        lambda logits: -logits.log_softmax(-1).gather(2, ids[:, 1:, None].expand(draws, 7, 1)).mean(
            (1, 2)
        ),
    ):  # fmt: skip
        one, other = measured(theirs), measured(ours)
        error = ((one.var() + other.var()) / draws).sqrt()
        assert abs(one.mean() - other.mean()) < 5 * error


@pytest.mark.parametrize("case", DROPOUTS)
def test_generate_and_logprobs_never_drop(case):
    engine = accel.HybridEngine(dropping(case))
    ids, mask = batch()
    asked = {"max_new_tokens": 6, "do_sample": True, "seed": 3, "return_logprobs": True}
    still, want = engine.logprobs(ids, mask), engine.generate(ids, mask, **asked)
    engine.train()
    assert torch.equal(engine.logprobs(ids, mask), still)
    assert torch.equal(engine.generate(ids, mask, **asked).logprobs, want.logprobs)
    assert engine.model.training
