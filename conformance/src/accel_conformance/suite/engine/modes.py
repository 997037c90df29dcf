"""Training and generating with one copy of the weights: what either does to the other."""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import accel
from accel.contracts.checks import WIDE
from accel.engine import HybridEngine, HybridEngineConfig
from accel.errors import UnsupportedModelError
from accel.ops import catalog
from accel.refusal import Refusal
from accel_conformance.case import Evidence
from accel_conformance.suite.engine.models import (
    LENGTHS,
    SAMPLING,
    Trial,
    answers,
    rollout,
    scored,
    training_logits,
)
from accel_conformance.target import Results, same_bits


def untouched(trial: Trial, seen: Evidence) -> None:
    """Weights, gradients, the optimizer and random numbers, over rollouts amid a training step."""
    engine = trial.engine().train()
    engine.optimizer = torch.optim.AdamW(engine.model.parameters(), lr=1e-3)
    for _ in range(2):
        engine.backward(_loss(engine, trial))
        before = _state(engine)
        rollout(engine, trial.ids, trial.mask, **SAMPLING)
        engine.logprobs(trial.ids, trial.mask)
        for part, bits in _state(engine).items():
            says = f"{part} changed while generating"
            seen.expect("untouched", same_bits(bits, before[part]), says)
        modes = {module.training for module in engine.model.modules()}
        seen.expect("untouched", modes == {True}, "generating left the training mode")
        engine.step()
        fresh = HybridEngine(copy.deepcopy(engine.model))
        found, wanted = (answers(rollout(e, trial.ids, trial.mask)) for e in (engine, fresh))
        says = "a rollout after a step is not that of the weights the step made"
        seen.expect("untouched", same_bits(found, wanted), says)
    accel.restore(engine.model)
    left = [name for name, module in engine.model.named_modules() if "forward" in vars(module)]
    seen.expect("untouched", not left, f"restore left a forward in {left[:1]}")


def compute_dtype(trial: Trial, seen: Evidence) -> None:
    """Keys and values in the dtype of the weights, and no autocast."""
    engine = trial.engine()
    with engine.generating():
        roll = rollout(engine, trial.ids, trial.mask)
        values = scored(engine, roll)
        plan = engine.plan
        assert plan is not None
        spec, cache = plan.require(), plan.model.generate.cache  # type: ignore[union-attr]
        rows = 2 * len(spec.scales) * len(LENGTHS) * cache.capacity
        wanted = rows * spec.kv_heads * spec.head_dim * next(engine.model.parameters()).itemsize
        says = f"the KV cache takes {cache.bytes} bytes; in the weights' dtype it is {wanted}"
        seen.expect("compute_dtype", cache.bytes == wanted, says)
    other = torch.float16 if roll.logprobs.dtype is torch.bfloat16 else torch.bfloat16
    with torch.autocast(trial.ids.device.type, dtype=other):
        found = rollout(engine, trial.ids, trial.mask)
        again = scored(engine, roll)
        logits = training_logits(engine, roll.sequences, roll.attention_mask)
    says = "under autocast generate gives other answers or values"
    seen.expect("compute_dtype", same_bits(answers(found), answers(roll)), says)
    says = "under autocast logprobs gives other values"
    seen.expect("compute_dtype", same_bits((again,), (values,)), says)
    says = "under autocast the training forward gives other logits"
    plain = training_logits(engine, roll.sequences, roll.attention_mask)
    seen.expect("compute_dtype", same_bits((logits,), (plain,)), says)


def dropout(trial: Trial, seen: Evidence) -> None:
    """Off in generate and logprobs in any mode; on in a training step, which the plan says."""
    engine = trial.engine()
    roll = rollout(engine, trial.ids, trial.mask, **SAMPLING)
    values = scored(engine, roll)
    plain = training_logits(engine, trial.ids, trial.mask)
    engine.train()
    found = rollout(engine, trial.ids, trial.mask, **SAMPLING)
    says = "in training mode generate gives other answers or values"
    seen.expect("dropout", same_bits(answers(found), answers(roll)), says)
    again = scored(engine, roll)
    says = "in training mode logprobs gives other values"
    seen.expect("dropout", same_bits((again,), (values,)), says)
    steps = [training_logits(engine, trial.ids, trial.mask) for _ in range(2)]
    real = trial.mask == 1
    says = "in training mode the model's dropout does not act"
    seen.expect("dropout", not torch.equal(steps[0][real], plain[real]), says)
    says = "two training steps have the same dropout"
    seen.expect("dropout", not torch.equal(steps[0][real], steps[1][real]), says)
    notes = engine.plan.notes if engine.plan else ()
    told = any("dropout" in note for note in notes)
    seen.expect("dropout", told, f"the plan says nothing of dropout: {notes}")


def adapter(trial: Trial, seen: Evidence) -> None:
    """With LoRA a value is one as without; switched off, an adapter has no part in it."""
    if importlib.util.find_spec("peft") is None:
        seen.refused([Refusal("package", "peft, which has LoRA", "none", "pip install peft")])
        return
    model = _with_lora(trial.model)
    plan = accel.plan(model)
    if plan.refusals:
        seen.refused(plan.refusals)
        return
    engine = HybridEngine(model)
    without = []
    for scale in (1, 2):
        _fill(engine.model, scale)
        for name in ("active", None):
            roll = rollout(engine, trial.ids, trial.mask, adapter=name, **SAMPLING)
            again = scored(engine, roll, adapter=name)
            says = f"with the adapter {name} logprobs gives other values than generate"
            seen.expect("adapter", same_bits((again,), (roll.logprobs,)), says)
            without += [] if name else [answers(roll)]
        other = scored(engine, roll)
        says = "the adapter changes nothing"
        seen.expect("adapter", not torch.equal(other, roll.logprobs), says)
    says = "an adapter that is off changes answers or values"
    seen.expect("adapter", same_bits(*without), says)


def exact(trial: Trial, seen: Evidence) -> None:
    """By default only implementations that claim invariance serve; another one is refused by the
    op's name, and exact=False permits it and says which it is."""
    plan = accel.plan(trial.model)
    for op, id in plan.served_by.items():
        impl = next(entry.impl for entry in catalog.entries(op) if entry.impl.id == id)
        says = f"{op} is served by {id}, which does not claim shape invariance"
        seen.expect("exact", impl.shape_invariant, says)
    loose = HybridEngineConfig(exact=False)
    for op, id in _variant(trial, plan.served_by):
        with accel.ops.use(f"{op}={id}", fallback="allow"):
            try:
                HybridEngine(copy.deepcopy(trial.model))
            except UnsupportedModelError as error:
                named = op in str(error) and "exact=False" in str(error)
                seen.expect("exact", named, f"a refusal does not name {op}: {error}")
            else:
                seen.expect("exact", False, f"{op} by {id}, which is not exact, is not refused")
            found = accel.plan(trial.model, loose).served_by.get(op)
            says = f"exact=False was to permit {id}; the plan has {op} served by {found}"
            seen.expect("exact", found == id, says)


def gradients(trial: Trial, seen: Evidence) -> None:
    """Of one batch, the same bits again."""
    engine = trial.engine()
    found = []
    for _ in range(2):
        engine.backward(_loss(engine, trial))
        found.append(_gradients(engine.model))
        engine.model.zero_grad()
    says = "a second backward of the same batch gives other gradients"
    seen.expect("gradients_repeat", same_bits(*found), says)


CHECKS = {
    check.__name__: check
    for check in (untouched, compute_dtype, dropout, adapter, exact, gradients)
}


def _loss(engine: HybridEngine, trial: Trial) -> Tensor:
    found: Tensor = engine(trial.ids, trial.mask, labels=trial.ids).loss
    return found


def _gradients(model: nn.Module) -> Results:
    return tuple(p.grad.clone() for p in model.parameters() if p.grad is not None)


def _state(engine: HybridEngine) -> dict[str, Results]:
    """What training goes on from."""
    assert engine.optimizer is not None
    kept = [value for state in engine.optimizer.state.values() for value in state.values()]
    return {
        "a parameter": tuple(p.detach().clone() for p in engine.model.parameters()),
        "a gradient": _gradients(engine.model),
        "the optimizer's state": tuple(v.clone() for v in kept if isinstance(v, Tensor)),
        "torch's random state": (torch.get_rng_state(),),
    }


def _with_lora(model: Any) -> Any:
    """A copy with an adapter on every projection but the head, where peft puts none."""
    peft = importlib.import_module("peft")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(copy.deepcopy(model), config).eval()


def _fill(model: nn.Module, scale: float) -> None:
    """New numbers for the adapter, which begins as one that does nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(scale * 0.1 * torch.randn(parameter.shape))


def _variant(trial: Trial, served: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Of the ops a model needs, implementations that do not claim invariance and would serve."""
    parameter = next(trial.model.parameters())
    for op in served:
        asked = {"dtype": parameter.dtype}
        if op == "linear":  # as the head does, whose logits are never rounded
            asked["out_dtype"] = WIDE[parameter.dtype]
        with accel.ops.use(exact=False):
            decision = accel.ops.explain(op, device=parameter.device, **asked)
        for verdict in decision.verdicts:
            if not verdict.refusals and not verdict.impl.shape_invariant:
                yield op, verdict.impl.id
