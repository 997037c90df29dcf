"""The loop over tokens: one forward for the prompts, then one per token of the rows still going."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from accel import ops
from accel.accelerator import Accelerator
from accel.engine.cache import KVCache
from accel.engine.call import Call
from accel.engine.generation import sampling
from accel.engine.generation.replay import TokenForward
from accel.engine.generation.request import Request
from accel.engine.generation.rollout import Answers
from accel.engine.modules.parts import Head
from accel.host import HOST


class Wave:
    """Answers that are made together; ``cache`` has room for them.

    Of each row still in the batch: ``rows``, which answer it is; ``token``, its last; ``ids``, all
    that stands before the next, if anything looks at it; ``uniform``, numbers to sample by;
    ``going``, False if it has ended.

    ``fed``    which prompts are computed: one for each of those that are alike
    ``had``    of each of those, how many tokens the cache holds already; empty: none of any
    """

    def __init__(
        self, request: Request, cache: KVCache, rows: Tensor, uniform: Tensor | None,
        answers: Answers,
    ) -> None:  # fmt: skip
        self.request = request
        self.cache = cache
        self.answers = answers
        self.rows = self.token = rows
        self.ids = request.prompts.seen(as_given=request.whole)[rows]
        self.uniform = None if uniform is None else uniform[rows]
        self.going = torch.ones_like(rows, dtype=torch.bool)
        self.had: list[int] = []
        self.fed = request.prompts.alike[rows]
        distinct, which = self.fed.unique(return_inverse=True)
        self._which: Tensor | None = None
        if len(distinct) < len(self.fed):
            self.fed, self._which = distinct, which
        self._columns: list[tuple[Tensor, ...]] = []  # not yet among the answers ...
        self._first = 0  # ... from which step on

    def make(
        self, model: nn.Module, head: Head, step: Call, graphs: Accelerator | None,
        shared: Callable[[], AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        """A forward for the prompts, then one per token but the last, replayed by ``graphs``; each
        within a ``shared()``."""
        forward = TokenForward(model, step, graphs)
        streamer = self.request.streamer
        if streamer is not None:
            streamer.put(self.request.prompts.answered()[0].to(HOST))
        for position in range(self.request.max_new_tokens):
            if self.request.abort():
                self.answers.aborted = True
                break
            with shared():
                projected = forward(self.token) if position else self._begin(model, step)
            self._choose(head, projected, position)
            if not self._go_on():
                break
        self._write()
        if streamer is not None:
            streamer.end()

    def _begin(self, model: nn.Module, step: Call) -> Tensor:
        """What the head projects the prompts' last tokens to. Prompts that are alike are computed
        once, and what is kept of them is copied: to the bits that each would have."""
        prompts, fed = self.request.prompts, self.fed
        if self._which is not None:
            self.cache.keep(slice(len(fed)))
        if prompts.embeds is None:
            ids, mask = prompts.behind(fed, self.had)
            projected = step.ask(model, ids, attention_mask=mask)
        else:
            mask = prompts.mask[fed]
            projected = step.ask(model, inputs_embeds=prompts.embeds[fed], attention_mask=mask)
        if self._which is not None:
            self.cache.fork(self._which)
            projected = projected.index_select(0, self._which)
        return projected  # type: ignore[no-any-return]

    def _choose(self, head: Head, projected: Tensor, position: int) -> None:
        """Each row's next token and its values, of the very numbers it is chosen by."""
        request, going = self.request, self.going
        logits = head.logits(projected)
        scores = request.processed(self.ids, logits)
        if self.uniform is None:
            token = scores.argmax(-1)
        else:
            token = sampling.pick(scores, self.uniform[:, position])
        value = drawn = head.values(projected, token)[0].where(going, 0.0)
        if scores is not logits:
            drawn = ops.logprob(scores, token)[0].where(going, 0.0)
        self.token = token.where(going, request.filler)
        self._columns.append((self.token, going, value, drawn))
        for name in request.kept:
            kept = scores if name == "scores" else logits
            self.answers.keep(name, position, self.rows, kept.where(going[:, None], 0.0))
        if request.looks_back:
            self.ids = torch.cat((self.ids, self.token[:, None]), 1)
        if request.streamer is not None:
            request.streamer.put(self.token.to(HOST))

    def _go_on(self) -> bool:
        """False once all rows have ended; those that have leave the batch."""
        ended = self.request.ended(self.ids, self.token, self.answers.kept.get("scores"))
        if ended is None:
            return True
        self.going = self.going & ~ended
        left = int(self.going.sum())
        if 0 < left < len(self.going) and not self.request.whole:
            self._write()
            self._keep(self.going.nonzero().squeeze(1))
        return left > 0

    def _write(self) -> None:
        self.answers.write(self.rows, self._first, self._columns)
        self._first += len(self._columns)
        self._columns = []

    def _keep(self, stay: Tensor) -> None:
        self.cache.keep(stay)
        self.rows, self.token, self.ids = self.rows[stay], self.token[stay], self.ids[stay]
        self.uniform = None if self.uniform is None else self.uniform[stay]
        self.going = self.going[stay]
