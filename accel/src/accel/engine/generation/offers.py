"""Offers: what each rank of a tensor-parallel group brings to a rollout, and gets of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from accel.engine.generation.rollout import Rollout
from accel.errors import OpArgumentError, RankError


@dataclass(frozen=True)
class Offer:
    """What one rank brings.

    ``ids``, ``mask``  its prompts ``[B, P]``, on the host; B may be 0
    ``seed``           and whether the caller chose it
    ``samples``        one number per answer, if the caller gave them
    ``stops``          it may stop the rollout
    ``asked``          settings, as text: the same on all ranks
    ``refused``        why its prompts are transformers' to answer: then all ranks' are
    """

    ids: Tensor
    mask: Tensor
    seed: int
    chosen: bool
    samples: list[int] | None
    stops: bool
    as_object: bool
    asked: dict[str, str]
    refused: str | None = None


def agreed(offers: list[Any]) -> list[Offer]:
    """RankError unless all take part and were asked for the same; or, where one is ``refused``, all
    for a ``fallback``, which each rank goes alone."""
    for rank, offer in enumerate(offers):
        if not isinstance(offer, Offer):
            raise RankError(
                f"rank {rank} of the tensor-parallel group cannot take part in this rollout, which "
                f"was not begun: {offer}"
            )
    asked = [dict(offer.asked) for offer in offers]
    for offer, settings in zip(offers, asked):
        settings["seed"] = str(offer.seed) if offer.chosen else "None"
        if len(offer.ids):
            settings["sample_ids"] = "None" if offer.samples is None else "given"
    alone = any(offer.refused for offer in offers)
    names = ["fallback"] if alone else [name for settings in asked for name in settings]
    for name in dict.fromkeys(names):
        # A rank without prompts has no sample_ids to give.
        told = {r: a.get(name, "None") for r, a in enumerate(asked)
                if name != "sample_ids" or name in a}  # fmt: skip
        if len(set(told.values())) > 1:
            have = ", ".join(f"{text:.120} on rank {rank}" for rank, text in told.items())
            raise RankError(
                f"ranks of a tensor-parallel group make one rollout, and were asked for different "
                f"ones: {name} is {have}; ask for the same on each"
            )
    if not alone and not sum(len(offer.ids) for offer in offers):
        raise OpArgumentError(
            "a rollout needs prompts; no rank of the tensor-parallel group has any"
        )
    return offers


def joined(offers: Sequence[Offer]) -> tuple[Tensor, Tensor]:
    """(ids, mask) of all prompts, padded on the left to one width."""
    width = max(offer.ids.shape[1] for offer in offers if len(offer.ids))

    def below(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([
            nn.functional.pad(t.to(torch.int64), (width - t.shape[1], 0)) for t in tensors
        ])  # fmt: skip

    there = [offer for offer in offers if len(offer.ids)]
    return below([offer.ids for offer in there]), below([offer.mask for offer in there])


def samples(offers: Sequence[Offer]) -> list[int] | None:
    """One number for every answer, if they were given."""
    given = [offer.samples for offer in offers if offer.samples is not None]
    return [sample for samples in given for sample in samples] if given else None


def own_rows(joint: Rollout, offers: Sequence[Offer], rank: int, ids: Tensor) -> Rollout:
    """A rank's rows, with its prompts as it gave them, as long as the longest of its answers."""
    mine = offers[rank]
    before = sum(len(offer.ids) for offer in offers[:rank])
    each = len(joint.sequences) // sum(len(offer.ids) for offer in offers)
    rows = slice(before * each, (before + len(mine.ids)) * each)
    counts = joint.response_mask[rows]
    new = int(counts.sum(1).max()) if len(counts) else 0
    width = joint.sequences.shape[1] - joint.logprobs.shape[1]
    answers = joint.sequences[rows, width : width + new]
    prompts, mask = (t.to(answers.device).repeat_interleave(each, 0) for t in (ids, mine.mask))
    scores, logits = (
        None if kept is None else tuple(step[rows] for step in kept[:new])
        for kept in (joint.scores, joint.logits)
    )
    return replace(
        joint,
        sequences=torch.cat((prompts, answers.to(prompts.dtype)), 1),
        attention_mask=torch.cat((mask, counts[:, :new]), 1),
        logprobs=joint.logprobs[rows, :new].contiguous(),
        processed_logprobs=joint.processed_logprobs[rows, :new].contiguous(),
        scores=scores,
        logits=logits,
    )
