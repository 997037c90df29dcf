"""What generate gives back, and where it is gathered while rows come and go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from accel.contracts.checks import WIDE
from accel.errors import OpArgumentError


@dataclass(frozen=True)
class Rollout:
    """What was generated, for B sequences of P prompt and N new columns.

    ``sequences``           int64 ``[B, P + N]``: prompts as they were given, then the answers; the
                            answers alone where the prompts were embeddings
    ``attention_mask``      int64 ``[B, P + N]``: 0 for padding and behind an answer's end
    ``logprobs``            fp32 ``[B, N]``: the model's own, before any processor; 0 where masked
    ``processed_logprobs``  fp32 ``[B, N]``: of the distribution that was sampled from
    ``scores``              fp32 ``[B, V]`` of each step, behind the processors, if asked for
    ``logits``              the same before them; both 0 where masked, as in a row that has ended
    ``seed``                which makes the same answers again
    ``aborted``             True if the caller stopped it; what was made until then is here
    ``reused``              tokens of the prompts that ``reuse_prefix`` spared
    ``not_reused``          why nothing of the rollout before could be reused; else None
    """

    sequences: Tensor
    attention_mask: Tensor
    logprobs: Tensor
    processed_logprobs: Tensor
    scores: tuple[Tensor, ...] | None
    logits: tuple[Tensor, ...] | None
    seed: int
    aborted: bool = False
    reused: int = 0
    not_reused: str | None = None

    @property
    def response_mask(self) -> Tensor:
        """int64 ``[B, N]``: 1 for the tokens of the answers, their end among them."""
        width = self.attention_mask.shape[1] - self.logprobs.shape[1]
        return self.attention_mask[:, width:]

    def gap(self, scored: Tensor) -> dict[str, float]:
        """How far ``logprobs`` are from what other weights say of the same tokens, such as
        ``engine.logprobs(self.sequences, self.attention_mask)``: fp32 ``[B, >= N]``, of which the
        last N columns count.

        ``tokens`` of the answers; ``mean`` and ``max`` of the absolute difference; ``kl``, which
        estimates KL(the rollout's || the other's) in nats a token, as long as it was sampled from
        the model's own distribution (k3 of Schulman 2020: http://joschu.net/blog/kl-approx.html).
        """
        batch, new = self.logprobs.shape
        if scored.dim() != 2 or len(scored) != batch or scored.shape[1] < new:
            raise OpArgumentError(
                f"scored must be [{batch}, {new} or more]: log-probabilities of the answers, whose "
                f"tokens stand last; found {list(scored.shape)}"
            )
        there = self.response_mask.bool()
        found = scored.detach()[:, scored.shape[1] - new :][there].double()
        off = found - self.logprobs[there].double()
        if not len(off):
            return {"tokens": 0, "mean": 0.0, "max": 0.0, "kl": 0.0}
        size, kl = off.abs(), off.expm1() - off
        means = {"mean": float(size.mean()), "max": float(size.max()), "kl": float(kl.mean())}
        return {"tokens": len(off), **means}

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class Answers:
    """Room for ``rows`` answers of up to ``new`` tokens: what is never written stays masked.

    ``kept``     of every step what was asked for, by name
    ``length``   columns written so far
    ``aborted``  no more will come
    """

    def __init__(
        self, rows: int, new: int, filler: int, like: Tensor, kept: Sequence[str] = ()
    ) -> None:
        shape, wide = (rows, new), WIDE[like.dtype]
        self.tokens = torch.full(shape, filler, dtype=torch.int64, device=like.device)
        self.counts = torch.zeros(shape, dtype=torch.int64, device=like.device)
        self.values = torch.zeros(shape, dtype=wide, device=like.device)
        self.processed = torch.zeros_like(self.values)
        self.kept: dict[str, list[Tensor]] = {name: [] for name in kept}
        self.length = 0
        self.aborted = False

    def write(self, rows: Tensor, first: int, columns: Sequence[tuple[Tensor, ...]]) -> None:
        """Steps ``first`` and on of these rows: (token, whether it counts, its two values)."""
        if not columns:
            return
        behind = first + len(columns)
        self.length = max(self.length, behind)
        stores = (self.tokens, self.counts, self.values, self.processed)
        for store, column in zip(stores, zip(*columns)):
            store[rows, first:behind] = torch.stack(column, 1).to(store.dtype)

    def keep(self, name: str, step: int, rows: Tensor, x: Tensor) -> None:
        """``[A, V]`` of these rows."""
        kept = self.kept[name]
        if step == len(kept):
            kept.append(x.new_zeros(len(self.tokens), x.shape[-1]))
        kept[step][rows] = x

    def rollout(
        self, ids: Tensor, mask: Tensor, seed: int, reused: int = 0, not_reused: str | None = None
    ) -> Rollout:
        """All of it, behind the prompts ``[B, P]``."""
        tokens, counts, values, processed = (
            store[:, : self.length]
            for store in (self.tokens, self.counts, self.values, self.processed)
        )
        scores, logits = (
            tuple(self.kept[name]) if name in self.kept else None for name in ("scores", "logits")
        )
        return Rollout(
            torch.cat((ids, tokens.to(ids.dtype)), 1),
            torch.cat((mask.to(torch.int64), counts), 1),
            values.contiguous(),
            processed.contiguous(),
            scores,
            logits,
            seed,
            self.aborted,
            reused,
            not_reused,
        )
