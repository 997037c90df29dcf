"""What a forward is for: a training step, log-probabilities, or the next token.

All three take a token's value from the head in fp32, by the same ops.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from accel.engine.call import Call
from accel.engine.modules.parts import head_of
from accel.engine.modules.shared import gathered
from accel.engine.sequences import Sequences
from accel.errors import OpArgumentError
from accel.layers.hooks import is_watched

# transformers' mark for a label that does not count.
IGNORED = -100


@dataclass(frozen=True, eq=False)
class Training(Call):
    """Logits and loss, as the model's own forward gives them.

    ``labels``  int64 ``[B, S]``, shifted here; :data:`IGNORED` and padded ones do not count
    ``keep``    positions to give logits for: how many at the end (0: all), or their indices
    ``items``   what the summed loss is divided by; None: the number of labels that count
    """

    labels: Tensor | None = None
    keep: int | Tensor = 0
    items: int | Tensor | None = None
    skip_logits: bool = False

    def result(self, head: nn.Module, hidden: Tensor, sequences: Sequences) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        loss = None
        if self.labels is not None:
            loss = self._loss(head, hidden, sequences, self.labels)
        logits = None
        if loss is None or not self.skip_logits:
            last = slice(-self.keep, None) if isinstance(self.keep, int) else self.keep
            logits = head_of(head).logits(head(hidden[:, last]))
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def _loss(
        self, head: nn.Module, hidden: Tensor, sequences: Sequences, labels: Tensor
    ) -> Tensor:
        if labels.shape != hidden.shape[:2]:
            raise OpArgumentError(
                f"labels must be {list(hidden.shape[:2])} like the tokens; found "
                f"{list(labels.shape)}"
            )
        before, after = sequences.successions()
        targets = labels.flatten().index_select(0, after)
        counted = (targets != IGNORED).nonzero().squeeze(1)
        h = hidden.flatten(0, 1).index_select(0, before[counted])
        values, _ = _scored(head, h, targets[counted])
        loss: Tensor = -values.sum() / (len(counted) if self.items is None else self.items)
        return loss


@dataclass(frozen=True, eq=False)
class Scoring(Call):
    """(log-probabilities, entropies) of ``ids`` ``[B, S]``, each fp32 ``[B, S - 1]``: entry t is
    ``log p(ids[:, t + 1] | ids[:, :t + 1])``, 0 where that token is padding or the first one, or
    where ``counted`` ``[B, S]`` says that it does not matter."""

    gives = tuple
    dropout: bool = False
    ids: Tensor | None = None
    temperature: float = 1.0
    counted: Tensor | None = None

    def result(
        self, head: nn.Module, hidden: Tensor, sequences: Sequences
    ) -> tuple[Tensor, Tensor]:
        assert self.ids is not None
        batch, length = self.ids.shape
        before, after = sequences.successions()
        if self.counted is not None:
            some = self.counted.flatten().index_select(0, after)
            before, after = before[some], after[some]
        h = hidden.flatten(0, 1).index_select(0, before)
        targets = self.ids.flatten().index_select(0, after).to(torch.int64)
        values, entropies = _scored(head, h, targets, self.temperature)
        entries = (after // length, after % length - 1)
        empty = values.new_zeros(batch, length - 1)
        return empty.index_put(entries, values), empty.index_put(entries, entropies)


@dataclass(frozen=True, eq=False)
class Step(Call):
    """What the head projects each sequence's last token to, fp32 ``[B, V]``."""

    gives = Tensor
    dropout: bool = False

    def result(self, head: nn.Module, hidden: Tensor, sequences: Sequences) -> Tensor:
        last = sequences.pack(hidden).index_select(0, sequences.last())
        if self.share is not None:
            return gathered(head, last, self.share)
        return head(last)  # type: ignore[no-any-return]


def score(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor | None,
    rows: int | None,
    *,
    embeds: Tensor | None = None,
    forward: Callable[[], AbstractContextManager[None]] = nullcontext,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """What :class:`Scoring` with these ``settings`` finds, in one forward for every ``rows`` of
    ``ids`` (None: for all), or of ``embeds`` in their place; each within a ``forward()``."""
    size = rows or max(len(ids), 1)
    found = []
    for start in range(0, max(len(ids), 1), size):
        part = slice(start, start + size)
        fed = {"input_ids": ids[part]} if embeds is None else {"inputs_embeds": embeds[part]}
        seen = None if mask is None else mask[part]
        call = Scoring(ids=ids[part], **settings)
        with forward():
            found.append(call.ask(model, **fed, attention_mask=seen))
    values, entropies = (torch.cat(parts) for parts in zip(*found))
    return values, entropies


def _scored(
    head: nn.Module, h: Tensor, ids: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(log-probability, entropy) of ``ids`` ``[T]``; by way of the logits, to the same bits, where
    a hook on the head expects to see those."""
    if is_watched(head):
        return head_of(head).values(head(h), ids, temperature)
    return head(h, ids=ids, temperature=temperature)  # type: ignore[no-any-return]
