"""Prompts: what answers are made to, which of them are alike, and how processors see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from accel.errors import OpArgumentError
from accel.host import HOST

# Stands for padding where transformers' processors look: beyond every vocabulary, which they take
# for no token at all.
NO_TOKEN = 2**31 - 1


@dataclass(frozen=True)
class Prompts:
    """Prompts of B sequences, each of which has a token to begin with.

    ``ids``     ``[B, P]`` as they were given; P is 0 where only embeddings were
    ``mask``    ``[B, P]``, or as wide as the embeddings
    ``embeds``  ``[B, P, H]`` to be fed in the tokens' place, or None
    ``each``    answers to each prompt
    """

    ids: Tensor
    mask: Tensor
    embeds: Tensor | None = None
    each: int = 1

    @property
    def fed(self) -> Tensor:
        """What the model gets."""
        return self.ids if self.embeds is None else self.embeds

    def answered(self) -> tuple[Tensor, Tensor]:
        """(ids, mask) that stand before each answer: one row per answer."""
        mask = self.mask[:, : self.ids.shape[1]]
        return self.ids.repeat_interleave(self.each, 0), mask.repeat_interleave(self.each, 0)

    def lengths(self) -> list[int]:
        """Real tokens of each answer's prompt."""
        found: list[int] = (self.mask != 0).sum(1).repeat_interleave(self.each).tolist()
        return found

    def contents(self) -> list[bytes]:
        """What identifies each answer's prompt: the ids of its real tokens, if there are ids."""
        found = _contents(self.ids if self.ids.shape[1] else self.fed, self.mask)
        return [content for content in found for _ in range(self.each)]

    @cached_property
    def alike(self) -> Tensor:
        """int64 ``[R]``: to which prompt each answer is; of those that are alike, to the first."""
        first: dict[bytes, int] = {}
        found = [first.setdefault(c, row) for row, c in enumerate(_contents(self.fed, self.mask))]
        return torch.tensor(found, device=self.mask.device).repeat_interleave(self.each)

    @cached_property
    def tokens(self) -> list[list[int]]:
        """The real ones of each prompt."""
        ids, real = self.ids.to(HOST), self.mask.to(HOST) != 0
        return [row[kept].tolist() for row, kept in zip(ids, real)]

    def behind(self, rows: Tensor, had: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(ids, mask) of these prompts, without as many first tokens of each as ``had`` says."""
        ids, mask = self.ids[rows], self.mask[rows]
        if not any(had):
            return ids, mask
        real = mask != 0
        left = real & (real.cumsum(1) > torch.tensor(had, device=real.device)[:, None])
        order = left.to(torch.int8).argsort(dim=1, stable=True)[:, -int(left.sum(1).max()) :]
        return ids.gather(1, order), left.gather(1, order).to(mask.dtype)

    def aligned(self) -> tuple[Tensor, Tensor]:
        """As :meth:`answered`, all padding moved to the left, where transformers expects it."""
        ids, mask = self.answered()
        order = (mask != 0).to(torch.int8).argsort(dim=1, stable=True)
        return ids.gather(1, order), mask.gather(1, order)

    def seen(self, as_given: bool) -> Tensor:
        """The aligned ids as processors see them: with the padding that was given, or with what no
        processor of transformers counts."""
        ids, mask = self.aligned()
        return ids if as_given else ids.to(torch.int64).where(mask != 0, NO_TOKEN)


def prompts(
    ids: Tensor | None, mask: Tensor | None, embeds: Tensor | None, each: int, pad: int | None,
    may_be_none: bool = False,
) -> Prompts:  # fmt: skip
    """From what generate was given; ``pad`` is padding wherever it stands and no mask is given.
    There is a prompt, unless there ``may_be_none``, and a token in each."""
    fed = ids if embeds is None else embeds
    wanted, what = (2, "input_ids must be whole numbers [batch, length]")
    if embeds is not None:
        wanted, what = (3, "inputs_embeds must be floats [batch, length, hidden]")
    if (
        not isinstance(fed, Tensor)
        or fed.dim() != wanted
        or fed.is_floating_point() is not (embeds is not None)
    ):
        found = list(fed.shape) if isinstance(fed, Tensor) else type(fed).__name__
        raise OpArgumentError(f"{what}; found {found}")
    shape = fed.shape[:2]
    if ids is None:
        ids = torch.zeros(len(fed), 0, dtype=torch.int64, device=fed.device)
    elif ids.shape != shape:
        raise OpArgumentError(
            f"input_ids beside inputs_embeds {list(fed.shape)} must be {list(shape)}; found "
            f"{list(ids.shape)}"
        )
    if mask is None:
        mask = torch.ones(shape, dtype=torch.int64, device=fed.device)
        if pad is not None and embeds is None:
            mask = (ids != pad).to(ids.dtype)
    if mask.shape != shape:
        raise OpArgumentError(
            f"attention_mask must be {list(shape)} like the prompts; found {list(mask.shape)}"
        )
    empty = (mask.sum(1) == 0).nonzero().flatten().tolist()
    if empty or not (mask.numel() or (may_be_none and not len(fed))):
        raise OpArgumentError(
            f"a prompt needs a token to begin with; empty: {empty or list(fed.shape)}"
        )
    return Prompts(ids, mask, embeds, each)


def _contents(x: Tensor, mask: Tensor) -> list[bytes]:
    """The bytes of each row's real tokens ``[B, P, ...]``; the padding does not count."""
    x = x.detach() if x.is_floating_point() else x.to(torch.int64)
    x, real = x.to(HOST), mask.to(HOST) != 0
    return [row[kept].view(torch.uint8).numpy().tobytes() for row, kept in zip(x, real)]
