"""TRL's GRPOTrainer on a hybridized model: rollouts, the head and old log-probabilities are ours.

    trainer = GRPOTrainer(model=model, ...)
    accel.integrations.trl.attach(trainer)
    trainer.train()

``accel.hybridize(model)`` alone, before the trainer is made, already has it generate and train by
the engine, but for the head: the trainer puts one of its own before the model's forward. With the
engine's in its place a token's value is bitwise the one it was sampled with. So where TRL wants the
values from before an update, as for several iterations over one rollout, they are those of the
rollout, and the forward that would find them again is spared.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from accel.engine import HybridEngineConfig, Rollout, hybridize, plan
from accel.engine.calls import IGNORED, Scoring
from accel.engine.generation.generate import Generate
from accel.errors import UnsupportedCapability
from accel.refusal import Refusal, sentence

# What is hooked is private to TRL: releases it was tested with.
TESTED = ("1.16",)


def attach(trainer: Any, config: HybridEngineConfig | Mapping[str, Any] | None = None) -> Attached:
    """Have a GRPOTrainer generate and score by the engine; before ``trainer.train()``.

    Its model is hybridized with ``config``, by default as it is already. A full reference model is
    hybridized too, so that where the weights are the same the divergence is exactly 0. Three things
    of the trainer's are replaced: the forwards of both models, ``generate``, and of the trainer
    ``_get_per_token_logps_and_entropies``, which hands a rollout's values out as the old ones.

    UnsupportedCapability, and nothing is changed, for another release of TRL than those tested and
    for settings that ask something of the head that it does not do; UnsupportedModelError for a
    model that the engine does not serve.
    """
    refusals = list(_refusals(trainer))
    if refusals:
        raise UnsupportedCapability(f"accel.integrations.trl.attach: {sentence(refusals)}")
    found = _generating(trainer.model)
    config = found.config if config is None and found is not None else HybridEngineConfig.of(config)
    if config.inference_tp_size > 1:
        raise UnsupportedCapability(
            f"accel.integrations.trl.attach: inference_tp_size={config.inference_tp_size} has "
            "ranks roll out together, and values are kept for the trainer of its own rollouts; "
            "leave it 1, or hybridize the model before the trainer is made and do not attach"
        )
    models = [m for m in (trainer.model, trainer.ref_model) if m is not None]
    with ExitStack() as undo:
        for model in models:
            _bare(model, undo)
            plan(model, config).require()
        # Again where it was: since then the trainer may have added an adapter, for the reference.
        inner: list[Any] = [hybridize(model, config).model for model in models]
        undo.pop_all()
    for model in inner:
        model.forward = _FusedHead(model.forward, trainer.temperature, config.exact)
    inner[0].generate = kept = _Kept(vars(inner[0])["generate"])
    return Attached(trainer, kept)


def _refusals(trainer: Any) -> list[Refusal]:
    installed = version("trl")
    if not installed.startswith(tuple(f"{release}." for release in TESTED)):
        remedy = "pip install one of them, or hybridize the model alone and keep TRL's own head"
        want = f"TRL {' or '.join(TESTED)}, whose private parts are known"
        return [Refusal("version", want, installed, remedy)]
    from trl import GRPOTrainer

    if not isinstance(trainer, GRPOTrainer):
        remedy = "hybridize the model before the trainer is made"
        return [Refusal("trainer", "a GRPOTrainer", type(trainer).__name__, remedy)]
    found = []
    if isinstance(vars(trainer).get("_get_per_token_logps_and_entropies"), Attached):
        found.append(Refusal("trainer", "one that is not attached", "one that is", "attach once"))
    unserved = {
        "cast_lm_head_to_fp32": "logits are fp32 here in any case",
        "use_liger_kernel": "the engine's forwards are its own",
    }
    for name, remedy in unserved.items():
        if getattr(trainer.args, name, False):
            found.append(Refusal("setting", f"{name}=False", "True", f"leave it out: {remedy}"))
    if trainer.aux_loss_enabled:
        remedy = "set the model's output_router_logits to False, or keep TRL's head"
        found.append(
            Refusal("setting", "no loss of the routers", "one beside the policy's", remedy)
        )
    return found


def _generating(model: nn.Module) -> Generate | None:
    """The engine's ``generate`` of a model inside that is hybridized."""
    found = (vars(module).get("generate") for module in model.modules())
    return next((each for each in found if isinstance(each, Generate)), None)


def _bare(model: nn.Module, undo: ExitStack) -> None:
    """Take the forwards away that TRL and Accelerate have put before the class's own, which the
    engine's are to follow; ``undo`` gives them back."""
    for module in model.modules():
        own: dict[str, Any] = vars(module)
        forward = own.get("_original_forward", own.get("forward"))
        if getattr(getattr(forward, "__code__", None), "co_name", "") == "_fused_forward":
            names = {"forward", "_original_forward"} & own.keys()
            taken: dict[str, Any] = {name: own.pop(name) for name in names}
            undo.callback(own.update, taken)


class _FusedHead:
    """In the place of a model's forward: what TRL's fused head gives, by the engine's.

    ``inner``  the forward found, TRL's around the engine's or the engine's alone
    """

    def __init__(self, inner: Any, temperature: float, exact: bool) -> None:
        self.inner = inner
        self.temperature = temperature
        self.exact = exact

    def __call__(
        self,
        input_ids: Tensor | None = None,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head:
            given = kwargs if labels is None else {**kwargs, "labels": labels}
            return self.inner(input_ids, *args, **given)
        from trl.trainer.utils import FusedCausalLMOutput

        if input_ids is None or labels is None:
            raise UnsupportedCapability(
                "the engine's head scores input_ids by labels of their shape; a sequence that is "
                "shared by ranks (shift_labels), or given as embeddings, is TRL's own head's"
            )
        call = Scoring(
            ids=input_ids, counted=labels != IGNORED, temperature=self.temperature,
            exact=self.exact, dropout=True,
        )  # fmt: skip
        values, entropies = self.inner(input_ids, *args, call=call, **kwargs)
        return FusedCausalLMOutput(log_probs=values, entropy=entropies)


class _Kept(Generate):
    """The model's ``generate``, which keeps its last rollout until somebody takes it."""

    def __init__(self, generate: Generate) -> None:
        super().__init__(generate.model, generate.spec, generate.config, generate.outer)
        self.cache = generate.cache
        self.rollout: Rollout | None = None

    def __call__(self, *args: Any, return_logprobs: bool = False, **kwargs: Any) -> Any:
        self.rollout = None
        found = super().__call__(*args, return_logprobs=True, **kwargs)
        if not isinstance(found, Rollout):  # handed to transformers
            return found
        self.rollout = found
        return found if return_logprobs else found.sequences

    def taken(self) -> Rollout | None:
        found, self.rollout = self.rollout, None
        return found


class Attached:
    """In the place of a trainer's ``_get_per_token_logps_and_entropies``.

    ``from_rollout``  how often old log-probabilities were those of the rollout
    ``computed``      how often they were not, and a forward has found them
    """

    def __init__(self, trainer: Any, kept: _Kept) -> None:
        self.trainer = trainer
        self.from_rollout = self.computed = 0
        self._kept = kept
        self._theirs = trainer._get_per_token_logps_and_entropies
        trainer._get_per_token_logps_and_entropies = self

    def __call__(
        self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        # The first forward behind a rollout is that of the old ones, if TRL wants them; the next is
        # the reference's.
        rollout = self._kept.taken()
        if rollout is not None and not torch.is_grad_enabled() and self._wants_old():
            found = self._old(rollout, input_ids, attention_mask, logits_to_keep)
            if found is not None:
                self.from_rollout += 1
                return found, None, None
            self.computed += 1
        return self._theirs(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)

    def _wants_old(self) -> bool:
        """TRL's own condition: a rollout is not used up by the update it is made for."""
        args = self.trainer.args
        every = args.steps_per_generation * self.trainer.num_iterations
        return bool(args.gradient_accumulation_steps % every)

    def _old(
        self, rollout: Rollout, input_ids: Tensor, attention_mask: Tensor, new: int
    ) -> Tensor | None:
        """The rollout's values at the trainer's temperature, ``[B, new]``; None where it has none,
        or is of other tokens, as where a tool has written some."""
        values = self._values(rollout)
        width = min(new, rollout.logprobs.shape[1])
        if values is None or len(values) != len(input_ids):
            return None
        start = rollout.sequences.shape[1] - rollout.logprobs.shape[1]
        there = attention_mask[:, -new:].bool()
        made = rollout.sequences[:, start : start + width]
        alike = (made == input_ids[:, -new:][:, :width]) & rollout.response_mask[:, :width].bool()
        if bool(there[:, width:].any()) or not bool((alike | ~there[:, :width]).all()):
            return None
        old = values.new_zeros(there.shape)
        old[:, :width] = values[:, :width]
        return old.where(there, 0.0)

    def _values(self, rollout: Rollout) -> Tensor | None:
        """TRL's are of the weights that train, and of the distribution at a temperature, which
        nothing else has changed."""
        trainer = self.trainer
        if not self._kept.config.exact:
            return None
        if trainer.temperature == 1.0:
            return rollout.logprobs
        whole = trainer.top_p == 1.0 and not trainer.top_k and trainer.min_p is None
        untouched = trainer.repetition_penalty == 1.0 and not trainer.args.generation_kwargs
        return rollout.processed_logprobs if whole and untouched else None
