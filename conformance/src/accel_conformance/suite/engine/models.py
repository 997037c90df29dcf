"""Small models and prompts for them: made of what a policy says of its architecture, no more."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.engine import HybridEngine, ModelPolicy, Rollout
from accel.refusal import Refusal
from accel_conformance.case import Evidence
from accel_conformance.target import Results

# By transformers' common names; an architecture keeps those it knows. Weights are large enough that
# every part has its say, and nothing is a power of two that need not be one.
VOCABULARY = 517
CONFIG = {
    "vocab_size": VOCABULARY, "hidden_size": 136, "intermediate_size": 300, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "initializer_range": 0.15, "attention_dropout": 0.1,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LENGTHS = (67, 1, 33, 7)  # of prompts, the longest beyond a block of keys
NEW = 6  # tokens of an answer
GREEDY: dict[str, Any] = {}
SAMPLING: dict[str, Any] = {"do_sample": True, "top_k": 50, "temperature": 0.8, "seed": 5}


@dataclass(frozen=True)
class Trial:
    """A model not yet the engine's, and prompts ``[B, P]`` padded left with what is no padding."""

    model: Any
    ids: Tensor
    mask: Tensor

    def engine(self, **config: Any) -> HybridEngine:
        """An engine around a copy of the model, in evaluation mode."""
        return HybridEngine(copy.deepcopy(self.model), config=config)

    def alone(self, row: int) -> tuple[Tensor, Tensor]:
        """A prompt without the others and without padding."""
        ids = self.ids[row][self.mask[row] == 1][None]
        return ids, torch.ones_like(ids)

    def on_the_right(self) -> tuple[Tensor, Tensor]:
        """The prompts padded on the right, with other tokens."""
        ids, mask = (self.ids + 1) % VOCABULARY, torch.zeros_like(self.mask)
        for row, real in enumerate(self.mask.sum(1).tolist()):
            ids[row, :real], mask[row, :real] = self.alone(row)[0][0], 1
        return ids, mask


def declines(seen: Evidence, policy: ModelPolicy) -> bool:
    """True, and written down why, if models of the policy cannot be made here."""
    package = policy.source.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        want = f"{package}, which {policy.name} is a model of"
        seen.refused([Refusal("package", want, "none", f"pip install {package}")])
        return True
    return False


def made(policy: ModelPolicy, dtype: torch.dtype, device: torch.device) -> Trial:
    """The policy's model and prompts; weights and tokens are those of a fixed seed."""
    kind = getattr(importlib.import_module(policy.source), policy.model)
    torch.manual_seed(0)
    model = kind(kind.config_class(**{**CONFIG, **policy.small})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases leave the ones and zeros they begin with
                parameter += 0.2 * torch.randn(parameter.shape)
    ids = torch.randint(VOCABULARY, (len(LENGTHS), max(LENGTHS)))
    padding = max(LENGTHS) - torch.tensor(LENGTHS)
    mask = (torch.arange(max(LENGTHS)) >= padding[:, None]).to(torch.int64)
    return Trial(model.to(device, dtype), ids.to(device), mask.to(device))


def rollout(engine: HybridEngine, ids: Tensor, mask: Tensor, **asked: Any) -> Rollout:
    """Answers to prompts, with everything there is to know of them."""
    settings = {
        "max_new_tokens": NEW, "return_logprobs": True, "output_logits": True, **asked,
    }  # fmt: skip
    found = engine.generate(ids, mask, **settings)
    assert isinstance(found, Rollout)
    return found


def answers(roll: Rollout) -> Results:
    """(tokens, which count, values, values as sampled from), each ``[B, N]``."""
    new = roll.logprobs.shape[1]
    return (
        roll.sequences[:, -new:],
        roll.attention_mask[:, -new:],
        roll.logprobs,
        roll.processed_logprobs,
    )


def scored(engine: HybridEngine, roll: Rollout, **asked: Any) -> Tensor:
    """The values ``[B, N]`` of the same answers by ``logprobs``."""
    found = engine.logprobs(roll.sequences, roll.attention_mask, **asked)
    assert isinstance(found, Tensor)
    return found[:, -roll.logprobs.shape[1] :].detach()


def training_logits(engine: HybridEngine, ids: Tensor, mask: Tensor, **asked: Any) -> Tensor:
    """The logits ``[B, S, V]`` of a training step's forward."""
    found: Tensor = engine(ids, mask, skip_logits=False, **asked).logits
    return found.detach()


def predicted(logits: Tensor, roll: Rollout) -> list[Tensor]:
    """Of the logits ``[B, S, V]`` of whole sequences, those each answer's token was chosen from,
    ``[B, V]`` a step."""
    new = roll.logprobs.shape[1]
    width = roll.sequences.shape[1] - new
    columns = torch.arange(width, device=logits.device)
    prompt = roll.attention_mask[:, :width] == 1
    last = torch.where(prompt, columns, -1).amax(1)
    rows = torch.arange(len(logits), device=logits.device)
    return [logits[rows, last], *(logits[:, width + step] for step in range(new - 1))]
