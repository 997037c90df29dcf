"""HybridEngine: train and generate with one set of weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from accel.engine.call import ACTIVE
from accel.engine.calls import score
from accel.engine.config import HybridEngineConfig
from accel.engine.generation.company import reached
from accel.engine.generation.generate import Generate
from accel.engine.generation.rollout import Rollout
from accel.engine.hybrid import hybridize
from accel.engine.modules.lora import require_adapter
from accel.engine.planning import Plan
from accel.engine.spec import EncoderSpec
from accel.engine.stats import Stats
from accel.engine.training.optimization import Optimization
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
    block. ``lr_scheduler`` is stepped after the optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        config: HybridEngineConfig | Mapping[str, Any] | None = None,
        lr_scheduler: Any = None,
    ) -> None:
        self.config = HybridEngineConfig.of(config)
        self.model = model
        plans = self.config.enabled
        self.plan: Plan | None = hybridize(model, self.config, optimizer) if plans else None
        self._optimization = Optimization(model, optimizer, lr_scheduler, self.config)
        self._stats = Stats(next(model.parameters()).device, self.config.on_stats)

    # -- training --------------------------------------------------------------------------

    def __call__(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """The model's forward: logits fp32 ``[B, S, V]``; with ``labels`` the loss, and in training
        no logits unless ``skip_logits=False``."""
        with self._phase("forward"):
            return self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def backward(self, loss: Tensor) -> Tensor:
        """Add the loss's gradients to the parameters', as those of the mean over
        ``gradient_accumulation_steps``; returns the loss as it was given.

        NonFiniteError, before anything is added, for a loss that is inf or nan. Ranks add up their
        gradients as their wrapper does it: after every micro batch, but for DDP's ``no_sync`` and
        FSDP2's ``set_requires_gradient_sync``.
        """
        with self._phase("backward"):
            self._optimization.backward(loss)
        return loss

    def step(self, lr_kwargs: Mapping[str, Any] | None = None) -> None:
        """At the boundary of accumulation: clip the gradients, one step of the optimizer and of the
        scheduler (with ``lr_kwargs``), then no gradients. Before it: count.

        NonFiniteError if the gradients' norm is inf or nan: they are dropped and nothing else is
        changed, so that whoever catches it has left these batches out.
        """
        with self._phase("step"):
            self._optimization.step(lr_kwargs or {})

    def zero_grad(self) -> None:
        """Drop the gradients; accumulation begins again."""
        self._optimization.zero_grad()

    def is_gradient_accumulation_boundary(self) -> bool:
        """True if the next ``step`` updates the parameters."""
        return self._optimization.at_boundary()

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        return self._optimization.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        self._optimization.optimizer = optimizer

    @property
    def lr_scheduler(self) -> Any:
        return self._optimization.lr_scheduler

    @property
    def global_steps(self) -> int:
        """Updates of the parameters so far."""
        return self._optimization.global_steps

    @property
    def global_grad_norm(self) -> float | None:
        """Total norm of the last update's gradients, before they were clipped."""
        return self._optimization.global_grad_norm

    def get_lr(self) -> list[float]:
        """The learning rate of each of the optimizer's groups."""
        return [group["lr"] for group in self._optimization.require_optimizer().param_groups]

    def save_checkpoint(
        self,
        save_dir: str | os.PathLike[str],
        tag: str | None = None,
        client_state: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write model, optimizer, schedule, master weights, counters, torch's random state and
        ``client_state`` (rank 0's) to ``save_dir/tag``, by default ``global_stepN``; returns that.

        Through torch.distributed.checkpoint, on every rank, to a folder all see. It is there whole
        or not at all, also in the place of one with its tag, and ``latest`` names it.
        CheckpointError where gradients wait for their update.
        """
        from accel.engine.training import checkpoint  # torch.distributed.checkpoint takes a second

        with self._phase("save"):
            return checkpoint.save(self._optimization, Path(save_dir), tag, client_state or {})

    def load_checkpoint(
        self, load_dir: str | os.PathLike[str], tag: str | None = None
    ) -> tuple[Path, dict[str, Any]]:
        """Go on from a checkpoint, by default the latest: (its path, the ``client_state``).

        Bitwise as if nothing had come between on as many ranks; with more of them, whose random
        state was never saved keeps its own. An engine without an optimizer takes the model alone.
        CheckpointError, and nothing is changed, if it is torn, or of another model or training.
        Everything is read beside the model first, which takes its memory once more. Gradients are
        dropped. A checkpoint is unpickled: load those you trust.
        """
        from accel.engine.training import checkpoint

        with self._phase("load"):
            return checkpoint.load(self._optimization, Path(load_dir), tag)

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
        """Answers to prompts; see :class:`accel.engine.generation.generate.Generate`. The model's
        mode does not matter and is not touched."""
        with self._phase("generate") as counts:
            generate = self._generate()
            found: Tensor | Rollout = generate(input_ids, attention_mask, *args, **kwargs)
            counts["tokens"] = generate.made
            self.plan = replace(self._planned(), gathering=generate.gathering)
            if kwargs.get("reuse_prefix"):
                counts["reused"] = generate.reused
        return found

    @contextmanager
    def generating(self) -> Iterator[HybridEngine]:
        """Several rollouts in a row: the KV cache is kept between them and given back at the end,
        whatever the configuration says of it; so are copies of weights, quantised
        (``rollout_weights``) or with LoRA adapters added to them (``fuse_lora``), which are those
        of the moment when a rollout first needed them."""
        with self._generate().keeping():
            yield self

    def release_cache(self) -> None:
        """Give the KV cache back; the next rollout makes another. UnsupportedCapability while one
        is under way."""
        with (cache := self._generate().cache).used():
            cache.release()

    def logprobs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        adapter: str | None = ACTIVE,
        micro_batch_size: int | None = None,
        weights: str = "training",
    ) -> Tensor | tuple[Tensor, Tensor]:
        """fp32 ``[B, S - 1]``: entry t is ``log p(input_ids[:, t + 1] | input_ids[:, :t + 1])``, 0
        where that token is padding or the first. With gradient where that is enabled; the logits
        are never held.

        ``temperature`` divides the logits. ``entropy`` adds the distributions' entropies, of the
        same shape. ``adapter`` is a LoRA adapter by name, ``"active"``, or None for the model
        without: the reference policy. Dropout is off. One forward per ``micro_batch_size`` rows.

        ``weights="rollout"``, without gradient, has the layers read what a rollout's do under
        ``rollout_weights`` and ``fuse_lora``: the copies of the ``generating()`` around, or new
        ones of the parameters as they are. Of quantised weights the values are ``generate``'s, bit
        for bit.
        """
        generate = self._generate()  # the model is still the engine's
        if weights not in ("training", "rollout"):
            raise ValueError(f"weights must be 'training' or 'rollout'; found {weights!r}")
        require_adapter(self.model, adapter)
        if input_ids.dim() != 2 or not input_ids.shape[1]:
            raise OpArgumentError(
                f"input_ids must be [batch, length > 0]; found {list(input_ids.shape)}"
            )
        size = micro_batch_size or self.config.micro_batch_size
        if size is not None and size < 1:
            raise ValueError(f"micro_batch_size must be positive; found {size}")
        with (
            self._phase("logprobs") as counts,
            generate.reading() if weights == "rollout" else nullcontext() as copies,
            torch.set_grad_enabled(torch.is_grad_enabled() and weights == "training"),
        ):
            settings: dict[str, Any] = {"adapter": adapter, "temperature": temperature}
            settings |= copies or {"exact": self.config.exact}
            values, entropies = score(self.model, input_ids, attention_mask, size, **settings)
            real = input_ids.numel() if attention_mask is None else attention_mask.sum()
            counts["tokens"] = int(real)
        return (values, entropies) if entropy else values

    def rollout_gap(self, rollout: Rollout, adapter: str | None = ACTIVE) -> dict[str, float]:
        """What a rollout's weights cost: :meth:`Rollout.gap` beside the parameters' own values, by
        one ``logprobs`` of it. 0 throughout where exact, and under ``rollout_weights`` not; after
        an update of the parameters it counts that too. ``stats()`` adds up its tokens and their
        ``difference``."""
        with self._phase("rollout_gap") as counts, torch.no_grad():
            if rollout.sequences.shape[1] == rollout.logprobs.shape[1]:
                raise OpArgumentError(
                    "rollout_gap needs the prompts' tokens before the answers'; found answers "
                    "alone, as to prompts given as embeddings"
                )
            scored = self.logprobs(rollout.sequences, rollout.attention_mask, adapter=adapter)
            assert isinstance(scored, Tensor)
            found = rollout.gap(scored)
            tokens = found["tokens"]
            counts |= {"tokens": tokens, "difference": found["mean"] * tokens}
        return found

    # -- what happened ---------------------------------------------------------------------

    def stats(self) -> dict[str, dict[str, float]]:
        """Per phase: ``calls``, ``seconds`` and, where there are any, ``tokens`` and their rate;
        of ``generate`` tokens of prompts that were ``reused``, where that was asked for."""
        return self._stats.totals()

    @contextmanager
    def _phase(self, name: str) -> Iterator[dict[str, float]]:
        with reached(), self._stats.phase(name) as counts:
            yield counts

    def _planned(self) -> Plan:
        if self.plan is None:
            raise UnsupportedModelError(
                "the engine was made with enabled=False and left the model to itself; its own "
                "generate and forward are what there is"
            )
        return self.plan

    def _generate(self) -> Generate:
        planned = self._planned()
        if isinstance(planned.spec, EncoderSpec):
            raise UnsupportedModelError(
                f"generate and logprobs ask for a model that predicts a next token; "
                f"{type(planned.model).__name__} is an encoder: engine(...), backward and step "
                "are what there is for it"
            )
        found = planned.model.__dict__.get("generate")
        if not isinstance(found, Generate):
            raise UnsupportedModelError(
                "the model is not the engine's any more (accel.restore was called, or its generate "
                "was replaced); accel.hybridize(model) makes it so again"
            )
        return found
