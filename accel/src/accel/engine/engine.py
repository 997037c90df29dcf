"""HybridEngine: train and generate with one set of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from accel.engine.call import ACTIVE
from accel.engine.calls import Scoring
from accel.engine.config import HybridEngineConfig
from accel.engine.generation import Generate, Rollout
from accel.engine.hybrid import hybridize
from accel.engine.modules.projection import require_adapter
from accel.engine.planning import Plan
from accel.engine.stats import Stats
from accel.errors import OpArgumentError, UnsupportedModelError


class HybridEngine:
    """A model that trains and generates, bitwise alike::

        engine = accel.HybridEngine(model, optimizer)
        out = engine(input_ids, attention_mask, labels=labels)
        engine.backward(out.loss)
        engine.step()
        roll = engine.generate(prompts, mask, max_new_tokens=64, return_logprobs=True)
        engine.logprobs(roll.sequences, roll.attention_mask)[:, -64:] == roll.logprobs

    ``model`` is one of transformers, also inside a wrapper (PEFT, DDP); its parameters stay where
    they are and are the only copy. UnsupportedModelError, with every reason, if it cannot be
    served; then nothing was changed. ``config`` may be a dict such as DeepSpeed's ``hybrid_engine``
    block.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        config: HybridEngineConfig | Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(config, Mapping):
            config = HybridEngineConfig.from_dict(config)
        self.config = config or HybridEngineConfig()
        self.model = model
        self.optimizer = optimizer
        self.plan: Plan | None = hybridize(model, self.config) if self.config.enabled else None
        self._stats = Stats(next(model.parameters()).device, self.config.on_stats)

    # -- training --------------------------------------------------------------------------

    def __call__(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """The model's forward: logits fp32 ``[B, S, V]``; with ``labels`` the loss, and in training
        no logits unless ``skip_logits=False``."""
        with self._stats.phase("forward"):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def backward(self, loss: Tensor) -> Tensor:
        """Add the loss's gradients to the parameters'; returns the loss."""
        with self._stats.phase("backward"):
            loss.backward()
        return loss

    def step(self) -> None:
        """One step of the optimizer, then no gradients."""
        if self.optimizer is None:
            raise RuntimeError("this engine was made without an optimizer; pass one to step")
        with self._stats.phase("step"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def train(self, mode: bool = True) -> HybridEngine:
        """Set the model's training mode: dropout acts, in training forwards only."""
        self.model.train(mode)
        return self

    def eval(self) -> HybridEngine:
        """Set the model's evaluation mode."""
        return self.train(False)

    # -- generation ------------------------------------------------------------------------

    def generate(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *args: Any,
        **kwargs: Any,
    ) -> Tensor | Rollout:  # fmt: skip
        """Answers to prompts; see :class:`accel.engine.generation.Generate`. The mode of the model
        does not matter and is not touched."""
        with self._stats.phase("generate") as counts:
            generate = self._generate()
            found = generate(input_ids, attention_mask, *args, **kwargs)
            counts["tokens"] = generate.made
        return found

    @contextmanager
    def generating(self) -> Iterator[HybridEngine]:
        """Several rollouts in a row: the KV cache is kept between them and given back at the end,
        whatever the configuration says of it."""
        generate = self._generate()
        kept = generate.config
        try:
            generate.config = replace(kept, release_inference_cache=False)
            yield self
        finally:
            generate.config = kept
            generate.cache.release()

    def release_cache(self) -> None:
        """Give the KV cache back; the next rollout makes another."""
        self._generate().cache.release()

    def logprobs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        adapter: str | None = ACTIVE,
        micro_batch_size: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """fp32 ``[B, S - 1]``: entry t is ``log p(input_ids[:, t + 1] | input_ids[:, :t + 1])``, 0
        where that token is padding or the first. With gradient where that is enabled; the logits
        are never held.

        ``temperature`` divides the logits. ``entropy`` adds the distributions' entropies, of the
        same shape. ``adapter`` is a LoRA adapter by name, ``"active"``, or None for the model
        without: the reference policy. Dropout is off. One forward per ``micro_batch_size`` rows.
        """
        self._generate()  # the model is still the engine's
        require_adapter(self.model, adapter)
        if input_ids.dim() != 2 or not input_ids.shape[1]:
            raise OpArgumentError(
                f"input_ids must be [batch, length > 0]; found {list(input_ids.shape)}"
            )
        size = micro_batch_size or self.config.micro_batch_size or max(len(input_ids), 1)
        if size < 1:
            raise ValueError(f"micro_batch_size must be positive; found {size}")
        found = []
        with self._stats.phase("logprobs") as counts:
            for start in range(0, max(len(input_ids), 1), size):
                rows = slice(start, start + size)
                ids = input_ids[rows]
                mask = None if attention_mask is None else attention_mask[rows]
                call = Scoring(
                    exact=self.config.exact, adapter=adapter, ids=ids, temperature=temperature
                )
                found.append(self.model(input_ids=ids, attention_mask=mask, call=call))
            real = input_ids.numel() if attention_mask is None else attention_mask.sum()
            counts["tokens"] = int(real)
        values, entropies = (torch.cat(parts) for parts in zip(*found))
        return (values, entropies) if entropy else values

    # -- what happened ---------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, float]]:
        """Per phase: ``calls``, ``seconds`` and, where there are any, ``tokens`` and their rate."""
        return self._stats.totals()

    def _planned(self) -> Plan:
        if self.plan is None:
            raise UnsupportedModelError(
                "the engine was made with enabled=False and left the model to itself; its own "
                "generate and forward are what there is"
            )
        return self.plan

    def _generate(self) -> Generate:
        found = self._planned().model.__dict__.get("generate")
        if not isinstance(found, Generate):
            raise UnsupportedModelError(
                "the model is not the engine's any more (accel.restore was called, or its generate "
                "was replaced); accel.hybridize(model) makes it so again"
            )
        return found
