"""A token's value: the same bits wherever it is computed, and whatever stands around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import accel
from accel.engine import HybridEngine, Rollout
from accel_conformance.case import Evidence
from accel_conformance.suite.engine.models import (
    GREEDY,
    NEW,
    SAMPLING,
    Trial,
    answers,
    predicted,
    rollout,
    scored,
    training_logits,
)
from accel_conformance.suite.rows import on_threads
from accel_conformance.target import Results, same_bits

ASKED: dict[str, dict[str, Any]] = {"greedy": GREEDY, "sampling": SAMPLING}
IGNORED = -100  # transformers' label that does not count
SHIFT = 5  # of positions a caller gives


def one_value(trial: Trial, seen: Evidence) -> None:
    """Sampler, generate, logprobs, the training forward's logits and the loss agree."""
    engine = trial.engine()
    for how, asked in ASKED.items():
        roll = rollout(engine, trial.ids, trial.mask, **asked)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                again = scored(engine, roll)
            says = f"{how}: logprobs gives others than generate, gradients {'on' * grad or 'off'}"
            seen.expect("one_value", _same(again, roll.logprobs), says)
        logits = training_logits(engine, roll.sequences, roll.attention_mask)
        assert roll.logits is not None
        for step, (drawn_of, trained) in enumerate(zip(roll.logits, predicted(logits, roll))):
            says = f"{how}: the logits of step {step} are not those of the training forward"
            seen.expect("one_value", _same(drawn_of, trained), says)
            token = roll.sequences[:, step - NEW]
            value, _ = accel.ops.logprob(trained, token)
            says = f"{how}: generate's value of token {step} is not that of the training logits"
            seen.expect("one_value", _same(value, roll.logprobs[:, step]), says)
        loss = _loss_of_last(engine, roll)
        says = f"{how}: the loss of one token is {loss.item()}, its value {roll.logprobs[0, -1]}"
        seen.expect("one_value", _same(-loss, roll.logprobs[0, -1]), says)


def company(trial: Trial, seen: Evidence) -> None:
    """Each prompt alone, all in another order, and few at a time."""
    engine = trial.engine()
    order = torch.tensor([2, 0, 3, 1], device=trial.ids.device)
    for how, asked in ASKED.items():
        roll = rollout(engine, trial.ids, trial.mask, **asked)
        whole = scored(engine, roll)
        for row in range(len(trial.ids)):
            alone = answers(rollout(engine, *trial.alone(row), **asked))
            says = f"{how}: prompt {row} alone has another answer or other values"
            seen.expect("company", same_bits(alone, _rows(answers(roll), [row])), says)
        moved = answers(rollout(engine, trial.ids[order], trial.mask[order], **asked))
        says = f"{how}: in another order of the batch answers or values are others"
        seen.expect("company", same_bits(moved, _rows(answers(roll), order.tolist())), says)
        for size in (1, 3):
            found = scored(engine, roll, micro_batch_size=size)
            says = f"{how}: logprobs of {size} sequences at a time gives other values"
            seen.expect("company", _same(found, whole), says)


def padding(trial: Trial, seen: Evidence) -> None:
    """On the left, on the right, and with other tokens standing there."""
    engine = trial.engine()
    other = torch.where(trial.mask == 1, trial.ids, 0)
    for how, asked in ASKED.items():
        roll = rollout(engine, trial.ids, trial.mask, **asked)
        plain = scored(engine, roll)
        arranged = {"with other tokens in the padding": (other, trial.mask),
                    "padded on the right": trial.on_the_right()}  # fmt: skip
        for where, prompts in arranged.items():
            found = rollout(engine, *prompts, **asked)
            says = f"{how}: {where}, prompts have other answers or values"
            seen.expect("padding", same_bits(answers(found), answers(roll)), says)
            says = f"{how}: {where}, logprobs gives other values"
            seen.expect("padding", _same(scored(engine, found), plain), says)


def prefill(trial: Trial, seen: Evidence) -> None:
    """An answer's beginning given as part of the prompt; and a cache of another size."""
    engine = trial.engine()
    roll = rollout(engine, trial.ids, trial.mask)
    for given in (1, NEW - 1):
        rest = NEW - given
        ids, mask = roll.sequences[:, :-rest], roll.attention_mask[:, :-rest]
        found = answers(rollout(engine, ids, mask, max_new_tokens=rest))
        wanted = tuple(result[:, given:] for result in answers(roll))
        says = f"with {given} tokens of the answer in the prompt, the others have other values"
        seen.expect("prefill", same_bits(found, wanted), says)
    with engine.generating():
        rollout(engine, trial.ids, trial.mask, max_new_tokens=2 * max(trial.ids.shape))
        found = answers(rollout(engine, trial.ids, trial.mask))
    says = "with a larger cache left from an earlier rollout, answers or values are others"
    seen.expect("prefill", same_bits(found, answers(roll)), says)


def schedule(trial: Trial, seen: Evidence) -> None:
    """1, 2 and 3 threads; and activations computed again in the backward."""
    engine = trial.engine()
    with on_threads(1):
        roll = rollout(engine, trial.ids, trial.mask, **SAMPLING)
        plain = scored(engine, roll)
    for count in (1, 2, 3):
        with on_threads(count):
            found = rollout(engine, trial.ids, trial.mask, **SAMPLING)
            again = scored(engine, roll)
        says = f"on {count} thread(s) the same call has other answers or values"
        seen.expect("schedule", same_bits(answers(found), answers(roll)), says)
        says = f"on {count} thread(s) logprobs gives other values"
        seen.expect("schedule", _same(again, plain), says)
    engine.model.gradient_checkpointing_enable()
    engine.train()
    says = "with activation checkpointing logprobs gives other values"
    seen.expect("schedule", _same(scored(engine, roll), plain), says)


def positions(trial: Trial, seen: Evidence) -> None:
    """From a sequence's first real token; and as the caller says, where he does."""
    engine = trial.engine()
    counted = (trial.mask.cumsum(1) - 1).clamp(min=0)
    row = 2
    ids, mask = trial.alone(row)
    real = trial.mask[row] == 1
    plain = training_logits(engine, ids, mask)
    shifted = training_logits(
        engine, ids, mask, position_ids=torch.arange(ids.shape[1], device=ids.device)[None] + SHIFT
    )
    for says, given, wanted in (
        ("without position_ids", None, plain),
        ("with the same position_ids given", counted, plain),
        ("with others given", counted + SHIFT, shifted),
    ):
        found = training_logits(engine, trial.ids, trial.mask, position_ids=given)[row][real]
        says = f"{says}, a padded prompt has other logits than alone"
        seen.expect("positions", _same(found, wanted[0]), says)


def masked(trial: Trial, seen: Evidence) -> None:
    """Values of padding and of what stands behind an answer's end are 0 on both sides."""
    engine = trial.engine()
    tokens = rollout(engine, trial.ids, trial.mask).sequences
    end = int(tokens[0, -NEW + 1])
    roll = rollout(engine, trial.ids, trial.mask, eos_token_id=end, pad_token_id=end)
    behind = roll.attention_mask[:, -roll.logprobs.shape[1] :] == 0
    seen.expect("masked", bool(behind[0].any()), f"an answer goes on behind its end {end}")
    sides = {
        "generate": roll.logprobs[behind],
        "the sampler": roll.processed_logprobs[behind],
        "logprobs": scored(engine, roll)[behind],
    }
    whole = engine.logprobs(roll.sequences, roll.attention_mask)
    assert isinstance(whole, Tensor)
    padded = roll.attention_mask[:, 1:] == 0
    for side, values in {**sides, "logprobs of prompts": whole.detach()[padded]}.items():
        says = f"{side} has values other than 0 where nothing counts"
        seen.expect("masked", _same(values, torch.zeros_like(values)), says)


CHECKS = {
    check.__name__: check
    for check in (one_value, company, padding, prefill, schedule, positions, masked)
}


def _loss_of_last(engine: HybridEngine, roll: Rollout) -> Tensor:
    """The loss where the last token of the first sequence is the only one that counts."""
    labels = torch.full_like(roll.sequences, IGNORED)
    labels[0, -1] = roll.sequences[0, -1]
    found: Tensor = engine(roll.sequences, roll.attention_mask, labels=labels).loss
    return found.detach()


def _same(one: Tensor, other: Tensor) -> bool:
    return same_bits((one,), (other,))


def _rows(results: Results, rows: list[int]) -> Results:
    return tuple(result[rows] for result in results)
