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

from accel.engine.cache import KVCache
from accel.engine.call import ACTIVE
from accel.engine.calls import Step
from accel.engine.config import BITS, HybridEngineConfig
from accel.engine.generation import request as requests
from accel.engine.generation import sampling
from accel.engine.generation.decoding import Wave
from accel.engine.generation.fallback import by_transformers, require_known
from accel.engine.generation.replay import graphs_for
from accel.engine.generation.request import Request
from accel.engine.generation.rollout import Answers, Rollout
from accel.engine.generation.verification import verify
from accel.engine.modules.lora import FusedWeights, require_adapter
from accel.engine.modules.parts import head_of
from accel.engine.modules.quantized import QuantizedWeights
from accel.engine.roles import require_current
from accel.engine.spec import DecoderSpec
from accel.errors import UnsupportedCapability


class Generate:
    """The ``generate`` of a hybridized model. Changes nothing of the model, whatever happens.

    ``made``        how many tokens the last call made, without what stands behind an answer's end
    ``seeds_made``  how many seeds it has made itself, on which the next one depends
    ``fused``       weights with LoRA adapters added, where somebody keeps them between rollouts
    ``quantized``   quantised copies of weights, likewise
    """

    def __init__(self, model: nn.Module, spec: DecoderSpec, config: HybridEngineConfig) -> None:
        self.model = model
        self.spec = spec
        self.config = config
        self.cache = KVCache(config.kv_cache_bytes)
        self.made = 0
        self.seeds_made = 0
        self.fused: FusedWeights | None = None
        self.quantized: QuantizedWeights | None = None

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

        ExactnessError with ``check_exact``, if a token's value is not what ``logprobs`` makes it.
        """
        if attention_mask is not None and not isinstance(attention_mask, Tensor):
            # transformers' second positional argument
            generation_config, attention_mask = attention_mask, None
        ids = input_ids if inputs is None else inputs
        require_current(self.model, self.spec)
        require_adapter(self.model, adapter)
        require_known(fallback)
        given = {
            "input_ids": ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds,
            "generation_config": generation_config, **settings,
        }  # fmt: skip
        try:
            request = requests.read(self.model, abort=abort, **given)
        except UnsupportedCapability as refused:
            if fallback is None:
                raise
            ours = {
                "seed": seed, "sample_ids": sample_ids, "return_logprobs": return_logprobs,
                "adapter": None if adapter == ACTIVE else str(adapter), "abort": abort,
            }  # fmt: skip
            self.made = 0
            return by_transformers(self.model, refused, given, ours)
        seed = self.new_seed() if seed is None else seed
        lengths = request.prompts.lengths()
        new_tokens = request.max_new_tokens
        requests.require_room(self.spec, max(lengths), new_tokens, self.config.max_out_tokens)
        uniform = None
        if request.sampled:
            samples = sampling.samples_of(request.prompts.contents(), sample_ids)
            uniform = sampling.uniforms(seed, samples, lengths, new_tokens)
        try:
            rollout = self._roll(request, adapter, lengths, uniform, seed)
        finally:
            if self.config.release_inference_cache:
                self.cache.release()
        if self.config.check_exact:
            rows = self.config.micro_batch_size
            verify(self.model, self.spec, request.prompts, rollout, adapter, rows)
        return rollout if request.as_object or return_logprobs else rollout.sequences

    def _roll(
        self, request: Request, adapter: str | None, lengths: list[int], uniform: Tensor | None,
        seed: int,
    ) -> Rollout:  # fmt: skip
        """All answers, in as few waves as the cache's limit permits."""
        like, count = next(self.model.parameters()), len(lengths)
        tokens = max(lengths) + request.max_new_tokens
        most = count if request.whole else self.cache.most(self.spec, tokens, like) or count
        ids, mask = request.prompts.answered()
        answers = Answers(count, request.max_new_tokens, request.filler, like, request.kept)
        uniform = None if uniform is None else uniform.to(like.device)
        head = head_of(self.model.get_submodule(self.spec.head))
        graphs = graphs_for(self.model, like.device, self.config.enable_cuda_graph)
        with self.reading() as weights, torch.no_grad():
            step = Step(adapter=adapter, cache=self.cache, **weights)
            with step.active(like.device):
                for rows in torch.arange(count, device=like.device).tensor_split(-(-count // most)):
                    if not answers.aborted:
                        self.cache.reserve(self.spec, len(rows), tokens, like)
                        wave = Wave(request, self.cache, rows, uniform, answers)
                        wave.make(self.model, head, step, graphs)
        self.made = int(answers.counts.sum())
        return answers.rollout(ids, mask, seed)

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

    def new_seed(self) -> int:
        """A seed of torch's and of how many were made before; the generator is left alone."""
        self.seeds_made += 1
        made = np.random.SeedSequence((torch.initial_seed(), self.seeds_made))
        return int(made.generate_state(1, np.uint64)[0] >> 1)
