"""generate: prompts in, tokens and their log-probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from accel.engine import sharding
from accel.engine.cache import KVCache
from accel.engine.call import ACTIVE
from accel.engine.calls import Step
from accel.engine.config import BITS, HybridEngineConfig
from accel.engine.gathering import Gathering
from accel.engine.generation import request as requests
from accel.engine.generation import sampling
from accel.engine.generation.company import Company
from accel.engine.generation.decoding import Wave
from accel.engine.generation.fallback import (
    by_transformers,
    require_known,
    require_transferable,
)
from accel.engine.generation.prefixes import Made, Prefixes, require_kept
from accel.engine.generation.replay import graphs_for
from accel.engine.generation.request import Asked, Request
from accel.engine.generation.rollout import Answers, Rollout
from accel.engine.generation.together import gathered
from accel.engine.generation.verification import verify
from accel.engine.memory import again_if_short
from accel.engine.modules.lora import FusedWeights, require_adapter
from accel.engine.modules.parts import head_of
from accel.engine.modules.quantized import QuantizedWeights
from accel.engine.parallel.share import Share
from accel.engine.roles import require_current
from accel.engine.spec import DecoderSpec
from accel.errors import UnsupportedCapability


class Generate:
    """The ``generate`` of a hybridized model. Changes nothing of the model, whatever happens.

    ``outer``       the wrapper around the model, where one was hybridized
    ``made``        how many tokens the last call made, without what stands behind an answer's end
    ``reused``      how many tokens of its prompts it did not compute again
    ``seeds_made``  how many seeds it has made itself, on which the next one depends
    ``fused``       weights with LoRA adapters added, where somebody keeps them between rollouts
    ``quantized``   quantised copies of weights, likewise
    ``gathering``   of a sharded model, how the last call gathered its parameters
    """

    def __init__(
        self, model: nn.Module, spec: DecoderSpec, config: HybridEngineConfig,
        outer: sharding.Outer,
    ) -> None:  # fmt: skip
        self.model = model
        self.outer = outer
        self.spec = spec
        self.config = config
        self.cache = KVCache(config.kv_cache_bytes)
        self.made = self.reused = 0
        self.seeds_made = 0
        self.fused: FusedWeights | None = None
        self.quantized: QuantizedWeights | None = None
        self.share: Share | None = None  # what this process computes, where several do it together
        self.gathering: Gathering | None = None

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: Any = None,
        *,
        inputs: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        seed: int | None = None,
        sample_ids: Sequence[int] | Tensor | None = None,
        return_logprobs: bool = False,
        reuse_prefix: bool = False,
        adapter: str | None = ACTIVE,
        abort: Event | Callable[[], bool] | None = None,
        fallback: str | None = None,
        **settings: Any,
    ) -> Any:
        """As transformers' ``generate`` where it takes the same arguments, and:

        ``seed``             of sampling; by default one is made of torch's, without drawing from it
        ``sample_ids``       one number per answer, which tells samples apart; by default the
                             prompt does, and how often it stood in the batch before
        ``return_logprobs``  return a :class:`Rollout` instead of the sequences alone
        ``reuse_prefix``     keep what the cache holds for the next call, and do not compute again
                             what the call right before has kept: the tokens that a prompt begins
                             with like any prompt and answer of that one, as a conversation's next
                             turn does; see below
        ``adapter``          a LoRA adapter by name, ``"active"``, or None for the model without
        ``abort``            an event, or what says True to end: looked at before every forward
        ``fallback``         "transformers": what is not served is handed to the model's own
                             ``generate``, and a warning says so once

        Prompts may be padded left or right; processors and criteria see them padded left. As in
        transformers ``do_sample`` means ``top_k=50`` unless another is given; 0 is the model's own
        distribution, and lengths count columns, padding among them.

        A row that has ended leaves the batch, prompts that are alike are computed once, and what
        ``kv_cache_bytes`` has no room for is made in several waves: where exact, none of it changes
        a bit. But where a ``logits_processor``, ``prefix_allowed_tokens_fn``,
        ``stopping_criteria`` or ``streamer`` of the caller's looks on, which may know a row by its
        place, all rows stay to the end, in one batch.

        Reuse changes no bit while ``exact``, whichever rows there are: the token's values do not
        depend on when those before it were computed. What was kept is forgotten, and
        :attr:`Rollout.not_reused` says why, if a parameter or buffer is not bitwise what it was
        (all are read to know it), other adapters, copies of weights or implementations serve, hooks
        were added or taken away, or another call came between. Hooks see what is computed only, and
        are trusted to do what they did. Of several waves the last is kept. Refused by name where
        prompts are embeddings, parameters are not gathered all at once, or the cache is released.

        An error on the way gives the cache back. Where memory is short it is tried once more, after
        what torch keeps was given back, too; then CapacityError. It is not where objects of the
        caller's look on, or other processes have come to the forward that failed.
        UnsupportedCapability while another call of the same model runs, in another thread or around
        this one.

        ExactnessError with ``check_exact``, if a token's value is not what ``logprobs`` makes it.
        """
        if attention_mask is not None and not isinstance(attention_mask, Tensor):
            # transformers' second positional argument
            generation_config, attention_mask = attention_mask, None
        asked = Asked(
            input_ids if inputs is None else inputs, attention_mask, inputs_embeds,
            generation_config, settings, seed, sample_ids, return_logprobs, reuse_prefix, adapter,
            abort, fallback,
        )  # fmt: skip
        with self.cache.used():  # refused before anything is done or said: another call goes on
            sharding.part(self.outer.of(self.model))
            return self._answer(asked)

    def _answer(self, asked: Asked) -> Any:
        company = Company(self.model, joint=self.share is not None)
        with company.telling():
            adapter, seed, reuse = asked.adapter, asked.seed, asked.reuse_prefix
            require_current(self.model, self.spec)
            require_adapter(self.model, adapter)
            require_known(asked.fallback)
            if reuse:
                require_kept(self.config, asked.embeds)
            self.made = self.reused = 0
            try:  # a process may have no prompts where others have
                request = asked.read(self.model, may_be_none=bool(company))
            except UnsupportedCapability as refused:
                require_transferable(asked, refused)
                return self._hand_over(asked, refused, company)
            lengths, new_tokens = request.prompts.lengths(), request.max_new_tokens
            longest = max(lengths, default=0)
            requests.require_room(self.spec, longest, new_tokens, self.config.max_out_tokens)
            samples = None
            if request.sampled:
                samples = sampling.samples_of(request.prompts.contents(), asked.sample_ids)
            with self._gathered(company):
                seed = self.new_seed() if seed is None else seed
                uniform = None
                if samples is not None:
                    uniform = sampling.uniforms(seed, samples, lengths, new_tokens)
                given = request, company, adapter, lengths, uniform, seed, reuse
                # Not where objects of the caller's have looked on, or others wait in a forward.
                alone = not request.whole and self.share is None
                try:
                    rollout = again_if_short(
                        lambda: self._roll(*given), self.cache, self._device,
                        lambda: alone and not company.torn,
                    )  # fmt: skip
                finally:
                    if self.config.release_inference_cache:
                        self.cache.release()
                if self.config.check_exact:
                    rows = self.config.micro_batch_size
                    verify(
                        self.model, self.spec, request.prompts, rollout, adapter, rows,
                        company.forward,
                    )  # fmt: skip
                company.keep(self._idle)
        wanted = request.as_object or asked.return_logprobs
        return rollout if wanted else rollout.sequences

    def _hand_over(self, asked: Asked, refused: UnsupportedCapability, company: Company) -> Any:
        """By transformers' ``generate``; others that hold parts of the parameters go their way."""
        grouped = self.share is not None
        with self._gathered(company, own=True):
            return by_transformers(self.model, asked, refused, company, grouped=grouped)

    @contextmanager
    def _gathered(self, company: Company, *, own: bool = False) -> Iterator[None]:
        outer = self.outer.of(self.model)
        together = gathered(self.model, outer, self.spec, self.config, company, own=own)
        with together as self.gathering:
            yield

    def _roll(
        self, request: Request, company: Company, adapter: str | None, lengths: list[int],
        uniform: Tensor | None, seed: int, reuse: bool,
    ) -> Rollout:  # fmt: skip
        """All answers, in as few waves as the cache's limit permits."""
        like = sharding.computed_like(self.model, self.outer.of(self.model))
        count, share = len(lengths), self.share
        tokens = max(lengths, default=0) + request.max_new_tokens
        # Waves are the same on all ranks: those of the one with most to keep.
        kept, widest = (share.own, share.widest) if share else (self.spec, self.spec)
        most = count if request.whole else self.cache.most(widest, tokens, like) or count
        waves = -(-count // most) if count else 0
        ids, mask = request.prompts.answered()
        answers = Answers(count, request.max_new_tokens, request.filler, like, request.kept)
        uniform = None if uniform is None else uniform.to(like.device)
        head = head_of(self.model.get_submodule(self.spec.head))
        graphs = graphs_for(self.model, like.device, self.config.enable_cuda_graph)
        with self.reading() as weights, torch.no_grad():
            step = Step(adapter=adapter, cache=self.cache, share=share, **weights)
            with step.active(like.device):
                prefixes = self._prefixes(request) if reuse else None
                all_rows = torch.arange(count, device=like.device)
                for rows in all_rows.tensor_split(waves) if waves else ():
                    if not answers.aborted:
                        wave = Wave(request, self.cache, rows, uniform, answers)
                        had = prefixes.found(wave.fed.tolist()) if prefixes else []
                        self.cache.reserve(kept, len(rows), tokens, like, had)
                        wave.had = [count for _, count in had]
                        try:
                            wave.make(self.model, head, step, graphs, company.forward)
                        except BaseException:
                            self.cache.release()
                            raise
                        if prefixes:
                            prefixes.keep(rows, answers)
        self.made = int(answers.counts.sum())
        not_reused = None
        if prefixes:
            self.reused, not_reused = prefixes.reused, prefixes.not_reused
        return answers.rollout(ids, mask, seed, self.reused, not_reused)

    @torch.no_grad()
    def _idle(self) -> None:
        """A forward of one token, for others' sake."""
        step = Step(exact=self.config.exact)
        step.ask(self.model, torch.zeros(1, 1, dtype=torch.int64, device=self._device))

    def _prefixes(self, request: Request) -> Prefixes:
        """Those of a rollout by the weights as they are, and by copies that somebody keeps."""
        copies = tuple(
            None if kept is None else kept.state for kept in (self.fused, self.quantized)
        )
        made = Made.by(self.model, self.spec, self.config, copies)
        return Prefixes(self.cache, request.prompts, made)

    @contextmanager
    def reading(self) -> Iterator[dict[str, Any]]:
        """What a :class:`Call` must be given to read the weights that a rollout reads: those kept,
        or copies that are made within and are gone behind, even if somebody still holds the call,
        as the traceback of an exception does."""
        config, fused, quantized = self.config, self.fused, self.quantized
        made: list[FusedWeights | QuantizedWeights] = []
        if fused is None and config.fuse_lora:
            fused = FusedWeights()
            made.append(fused)
        if quantized is None and config.rollout_weights is not None:
            quantized = QuantizedWeights(BITS[config.rollout_weights])
            made.append(quantized)
        try:
            yield {"exact": config.exact_rollouts, "fused": fused, "quantized": quantized}
        finally:
            for copies in made:
                copies.clear()

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Rollouts within share one KV cache and one set of copied weights."""
        config, fused, quantized = self.config, self.fused, self.quantized
        try:
            with self.reading() as weights:
                self.config = replace(config, release_inference_cache=False)
                self.fused, self.quantized = weights["fused"], weights["quantized"]
                yield
        finally:
            self.config, self.fused, self.quantized = config, fused, quantized
            self.cache.release()

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def new_seed(self) -> int:
        """A seed of torch's and of how many were made before; the generator is left alone."""
        self.seeds_made += 1
        made = np.random.SeedSequence((torch.initial_seed(), self.seeds_made))
        return int(made.generate_state(1, np.uint64)[0] >> 1)
