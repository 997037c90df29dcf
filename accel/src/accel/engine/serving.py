"""Which implementations serve what a model needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from accel import ops
from accel.contracts.checks import WIDE
from accel.engine.config import BITS, HybridEngineConfig
from accel.engine.spec import DecoderSpec, StackSpec
from accel.refusal import Refusal


def served(
    model: nn.Module, spec: StackSpec, config: HybridEngineConfig, *, lora: bool
) -> tuple[dict[str, str], list[Refusal]]:
    """The implementation of every op the model needs, with ``lora`` those of adapters too, or why
    there is none."""
    parameter = next(model.parameters())
    needed = _needed(spec, parameter.dtype)
    if lora:
        needed.append(("lora_linear", {}))
    if config.rollout_weights is None:
        remedy = "HybridEngineConfig(exact=False) permits others"
        return _decided(needed, parameter, config.exact, remedy)
    served, refused = _decided(needed, parameter, config.exact, "")
    # Whatever trains, rollouts and their scoring are exact.
    rolling = [*needed, ("quantized_linear", {"bits": BITS[config.rollout_weights]})]
    rolled, others = _decided(rolling, parameter, True, "leave rollouts the parameters (None)")
    served = {**rolled, **served}
    return served, refused or others


def what_differs(
    model: nn.Module, spec: StackSpec, config: HybridEngineConfig, by: dict[str, str], *, lora: bool
) -> str:
    """What ``exact=False`` changes of the implementations, which serve ``by`` it."""
    exactly = replace(
        config, exact=True, fuse_lora=False, rollout_weights=None, inference_tp_sums=False
    )
    others, _ = served(model, spec, exactly, lora=lora)
    changed = [
        f"{op} by {impl} (exact: {others.get(op, 'none')})"
        for op, impl in by.items()
        if op != "quantized_linear" and others.get(op) != impl
    ]
    if not changed:
        return "exact=False: here it changes no implementation; all are shape-invariant"
    return (
        f"exact=False: {', '.join(changed)}, whose rows may depend on those beside them: values of "
        "generate, logprobs and training may differ by roundings"
    )


def _decided(
    needed: list[tuple[str, dict[str, Any]]], parameter: nn.Parameter, exact: bool, remedy: str
) -> tuple[dict[str, str], list[Refusal]]:
    served: dict[str, str] = {}
    refused: list[Refusal] = []
    with ops.use(exact=exact, strict=exact):
        for op, options in needed:
            asked = {"dtype": parameter.dtype, **options}
            decision = ops.explain(op, device=parameter.device, grad=True, **asked)
            if decision.chosen is not None:
                served[op] = decision.chosen.impl.id
            elif exact:
                want = "a shape-invariant implementation"
                refused.append(Refusal(op, want, str(decision), remedy))
            else:
                remedy = "install a backend that serves it"
                refused.append(Refusal(op, "an implementation", str(decision), remedy))
    return served, refused


def _needed(spec: StackSpec, dtype: torch.dtype) -> list[tuple[str, dict[str, Any]]]:
    """The ops of a model and what they are asked for; attention once for each kind of layer."""
    wide = WIDE.get(dtype)
    found: list[tuple[str, dict[str, Any]]] = [(spec.norm, {}), ("linear", {}), ("bias_act", {})]
    if isinstance(spec, DecoderSpec):
        found = [
            ("embedding", {}), (spec.norm, {}), ("linear", {"out_dtype": wide}), ("bias_act", {}),
            ("logprob", {}),
        ]  # fmt: skip
        found += [("rotary", {})] if spec.rotary else []
    layer, layers = spec.layer, range(len(spec.scales))
    if layer.gate not in (None, layer.up) and not all(map(layer.has_experts, layers)):
        found += [("gated_linear", {"act": spec.act})]
    if any(map(layer.has_experts, layers)):
        found += [("softmax", {"dtype": wide}), ("grouped_linear", {"out_dtype": wide})]
    for window in dict.fromkeys(map(spec.window, layers)):
        asked = {"window": window, "softcap": spec.score_softcap, "slopes": bool(spec.slopes)}
        asked |= {"dropout": spec.probability_dropout}
        asked |= {"head_size": spec.head_dim, "value_size": spec.head_dim}
        found += [("attention", asked)]
    return found
