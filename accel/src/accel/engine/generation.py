"""generate: prompts in, tokens and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accel import ops
from accel.engine import request as requests
from accel.engine import sampling
from accel.engine.cache import KVCache
from accel.engine.call import ACTIVE
from accel.engine.calls import Step
from accel.engine.config import HybridEngineConfig
from accel.engine.modules.projection import require_adapter
from accel.engine.request import Request
from accel.engine.roles import require_current
from accel.engine.spec import DecoderSpec


@dataclass(frozen=True)
class Rollout:
    """What was generated, for B sequences of P prompt and N new columns.

    ``sequences``           int64 ``[B, P + N]``: prompts as they were given, then the answers
    ``attention_mask``      int64 ``[B, P + N]``: 0 for padding and behind an answer's end
    ``logprobs``            fp32 ``[B, N]``: the model's own, before any processor; 0 where masked
    ``processed_logprobs``  fp32 ``[B, N]``: of the distribution that was sampled from
    ``logits``              fp32 ``[B, V]`` of each step if asked for, else None
    ``seed``                which makes the same answers again
    """

    sequences: Tensor
    attention_mask: Tensor
    logprobs: Tensor
    processed_logprobs: Tensor
    logits: tuple[Tensor, ...] | None
    seed: int

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class Generate:
    """The ``generate`` of a hybridized model. Changes nothing of the model, whatever happens.

    ``made``  how many tokens the last call made, without what stands behind an answer's end
    """

    def __init__(self, model: nn.Module, spec: DecoderSpec, config: HybridEngineConfig) -> None:
        self.model = model
        self.spec = spec
        self.config = config
        self.cache = KVCache(config.kv_cache_bytes)
        self.made = 0
        self._calls = 0

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: Any = None,
        *,
        inputs: Tensor | None = None,
        seed: int | None = None,
        sample_ids: Sequence[int] | Tensor | None = None,
        return_logprobs: bool = False,
        adapter: str | None = ACTIVE,
        **settings: Any,
    ) -> Tensor | Rollout:
        """As transformers' ``generate`` where it takes the same arguments, and:

        ``seed``             of sampling; by default one is made of torch's, without drawing from it
        ``sample_ids``       one number per sequence, which tells samples apart; by default the
                             prompt does, and how often it stood in the batch before
        ``return_logprobs``  return a :class:`Rollout` instead of the sequences alone
        ``adapter``          a LoRA adapter by name, ``"active"``, or None for the model without

        Prompts may be padded left or right. As in transformers ``do_sample`` means ``top_k=50``
        unless another is given; 0 is the model's own distribution.
        """
        if attention_mask is not None and not isinstance(attention_mask, Tensor):
            # transformers' second positional argument
            generation_config, attention_mask = attention_mask, None
        ids = input_ids if inputs is None else inputs
        require_current(self.model, self.spec)
        require_adapter(self.model, adapter)
        request = requests.read(self.model, ids, generation_config, settings)
        assert ids is not None
        mask = request.prompts(ids, attention_mask)
        longest = int(mask.sum(1).max())
        new_tokens = request.max_new_tokens
        requests.require_room(self.spec, longest, new_tokens, self.config.max_out_tokens)
        ids, mask = (t.repeat_interleave(request.samples_each, 0) for t in (ids, mask))
        seed = self._seed() if seed is None else seed
        uniform = None
        if request.process is not None:
            samples = sampling.samples_of(ids, mask, sample_ids)
            uniform = sampling.uniforms(seed, samples, mask.sum(1).tolist(), new_tokens)
        parameter = next(self.model.parameters())
        try:
            self.cache.reserve(self.spec, len(ids), longest + new_tokens, parameter)
            step = Step(exact=self.config.exact, adapter=adapter, cache=self.cache)
            with torch.no_grad(), step.active(parameter.device):
                rollout = self._roll(request, step, ids, mask, uniform, seed)
        finally:
            if self.config.release_inference_cache:
                self.cache.release()
        return rollout if request.as_object or return_logprobs else rollout.sequences

    def _roll(
        self, request: Request, step: Step, ids: Tensor, mask: Tensor, uniform: Tensor | None,
        seed: int,
    ) -> Rollout:  # fmt: skip
        """One forward for the prompts, then one per token but the last."""
        columns: list[tuple[Tensor, ...]] = []  # token, whether it counts, its two values
        kept: list[Tensor] = []
        going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        ends = torch.tensor(request.eos, dtype=torch.int64, device=ids.device)
        logits = self.model(ids, attention_mask=mask, call=step)
        for position in range(request.max_new_tokens):
            if position:
                logits = self.model(columns[-1][0][:, None], call=step)
            scores, token = _next(request, ids, logits, uniform, position)
            value = ops.logprob(logits, token)[0].where(going, 0.0)
            drawn = value
            if scores is not logits:
                drawn = ops.logprob(scores, token)[0].where(going, 0.0)
            columns.append((token.where(going, request.filler), going, value, drawn))
            kept += [logits] if request.output_logits else []
            going = going & ~torch.isin(token, ends)
            if not going.any():
                break
        tokens, counts, values, processed = (torch.stack(column, 1) for column in zip(*columns))
        self.made = int(counts.sum())
        return Rollout(
            torch.cat((ids, tokens.to(ids.dtype)), 1),
            torch.cat((mask.to(torch.int64), counts.to(torch.int64)), 1),
            values,
            processed,
            tuple(kept) if request.output_logits else None,
            seed,
        )

    def _seed(self) -> int:
        """A seed of torch's and of how many were made before; the generator is left alone."""
        self._calls += 1
        made = np.random.SeedSequence((torch.initial_seed(), self._calls))
        return int(made.generate_state(1, np.uint64)[0] >> 1)


def _next(
    request: Request, ids: Tensor, logits: Tensor, uniform: Tensor | None, position: int
) -> tuple[Tensor, Tensor]:
    """(the logits chosen from, the token chosen)"""
    if request.process is None or uniform is None:
        return logits, logits.argmax(-1)
    scores = request.process(ids, logits)
    return scores, sampling.pick(scores, uniform[:, position].to(scores.device))
