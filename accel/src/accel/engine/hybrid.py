"""hybridize and restore: a model in the engine's hands, and out of them without a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from accel.engine import sharding
from accel.engine.config import HybridEngineConfig
from accel.engine.forward import installed
from accel.engine.generation.company import Company
from accel.engine.generation.generate import Generate
from accel.engine.generation.shared import SharedGenerate
from accel.engine.planning import Plan, plan
from accel.engine.spec import DecoderSpec
from accel.errors import UnsupportedModelError


def hybridize(
    model: nn.Module,
    config: HybridEngineConfig | Mapping[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Plan:
    """Give a transformers model accel's forwards and ``generate``, in place, for people who keep
    their own training loop; returns what was done. Of an encoder the layers are replaced.

    All or nothing: UnsupportedModelError, with every reason, leaves the model as it was. Parameters
    stay where they are under their names, so optimizers, hooks, sharding, gradient checkpointing,
    PEFT, ``state_dict``, deepcopy and pickle go on as before. May be called again, as after adding
    an adapter. With ``inference_tp_size`` all processes call it, in the same order, as torch makes
    process groups on all at once. :func:`restore` undoes it, but not sharding: with ``shard`` the
    model's parameters become shards, which ``optimizer`` gets in their place; called again, it
    leaves them so.
    """
    config = HybridEngineConfig.of(config)
    mesh = None
    if config.shard is not None and not _has_sharded(model):
        mesh = sharding.mesh_for(config.shard, model, optimizer)
    made = plan(model, config)
    spec = made.require()
    if mesh is not None:
        Company(made.model, mesh).begin(0)
    restore(model)
    made.apply()
    if mesh is not None:
        sharding.shard(made.model, spec, mesh, optimizer)
    if isinstance(spec, DecoderSpec):
        kind = Generate if config.inference_tp_size == 1 else SharedGenerate
        outer = sharding.Outer(None if made.model is model else model)
        made.model.generate = kind(made.model, spec, config, outer)  # type: ignore[assignment]
    return made


def _has_sharded(model: nn.Module) -> bool:
    """True if an earlier call of :func:`hybridize` has sharded it, and it is the engine's still."""
    found = (module.__dict__.get("generate") for module in model.modules())
    return any(isinstance(each, Generate) and each.config.shard is not None for each in found)


def restore(model: nn.Module) -> None:
    """Undo :func:`hybridize`, in place; a model that is not hybridized stays as it is.

    UnsupportedModelError, and nothing is undone, where somebody has wrapped the model's forward.
    """
    for module in model.modules():
        generates = isinstance(module.__dict__.get("generate"), Generate)
        if generates and "forward" in vars(module) and installed(module) is None:
            raise UnsupportedModelError(
                f"{type(module).__name__}'s forward was wrapped since accel.hybridize, in "
                f"{vars(module)['forward']!r:.120}, which would go on calling the engine's; "
                "take that away first: model.forward = what it wraps"
            )
    for module in model.modules():
        forward = installed(module)
        if forward is not None:
            forward.remove()
        if isinstance(module.__dict__.get("generate"), Generate):
            del module.__dict__["generate"]
