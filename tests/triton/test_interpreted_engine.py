"""The engine on a tiny Llama, every op of it a Triton kernel under the interpreter."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton, which compiles for GPUs alone")

from engine import models
from interpreter import backend

import accel
from accel import testing


def test_what_generate_says_of_a_token_is_what_logprobs_says():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 40}
    model = models.llama(**sizes)
    ids = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 8]])  # two prompts, one of three tokens
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    with testing.installed(backend.plugin()), accel.use_accelerator("interpreted"):
        engine = accel.HybridEngine(model)
        assert set(engine.plan.served_by.values()) == {"interpreted.triton"}
        answer = engine.generate(ids, mask, max_new_tokens=4, return_logprobs=True)
        scored = engine.logprobs(answer.sequences, answer.attention_mask)
        assert torch.equal(scored[:, -4:], answer.logprobs)
        (-scored.mean()).backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients)
