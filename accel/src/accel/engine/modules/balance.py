"""The loss that asks for experts to be used evenly, and the routers' logits it is made of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from accel.engine.sequences import Sequences
from accel.engine.spec import ExpertsSpec
from accel.errors import UnsupportedCapability


@dataclass
class RouterLogits:
    """Those of one forward, ``[T, E]`` for each layer with experts; ``graded``: with gradients."""

    graded: bool = field(default_factory=torch.is_grad_enabled)
    layers: list[Tensor] = field(default_factory=list)


_kept: ContextVar[RouterLogits | None] = ContextVar("accel_engine_router_logits", default=None)


@contextmanager
def keeping(asked: bool) -> Iterator[RouterLogits]:
    """Has every router that runs in here keep its logits, if ``asked``. Not those that run again
    during backward: they would keep what gradient checkpointing is to forget."""
    found = RouterLogits()
    token = _kept.set(found if asked else None)
    try:
        yield found
    finally:
        _kept.reset(token)


def keep(logits: Tensor) -> None:
    """Where a router is asked to."""
    kept = _kept.get()
    if kept is None:
        return
    if kept.graded and not torch.is_grad_enabled():
        raise UnsupportedCapability(
            "output_router_logits: reentrant gradient checkpointing takes the gradient from the "
            "routers' loss; enable it with gradient_checkpointing_kwargs={'use_reentrant': False}"
        )
    kept.layers.append(logits)


def balanced(
    output: dict[str, Any], kept: RouterLogits, sequences: Sequences, model: Any,
    experts: ExpertsSpec,
) -> Any:  # fmt: skip
    """transformers' output of a model with experts; where logits were kept, with the loss of them
    that the architecture has beside its model, over real tokens."""
    from transformers.modeling_outputs import MoeCausalLMOutputWithPast

    found: dict[str, Any] = {**output}
    if kept.layers:
        aux_loss = _balancing_loss(model)(tuple(kept.layers), experts.count, experts.top_k)
        if output.get("loss") is not None:
            found["loss"] = output["loss"] + model.router_aux_loss_coef * aux_loss
        rows = tuple(sequences.unpack(logits).flatten(0, 1) for logits in kept.layers)
        found |= {"aux_loss": aux_loss, "router_logits": rows}
    return MoeCausalLMOutputWithPast(**found)


def _balancing_loss(model: nn.Module) -> Any:
    for kind in type(model).__mro__:
        found = getattr(sys.modules[kind.__module__], "load_balancing_loss_func", None)
        if found is not None:
            return found
    raise UnsupportedCapability(
        f"output_router_logits: there is no load_balancing_loss_func beside {type(model).__name__}"
    )
