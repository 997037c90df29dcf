"""Gathering: how the parameters of a sharded model come together for a rollout.

All at once before it, which takes the most memory and one gathering a rollout; some layers at a
time, a layer and the next, or one, which gather everything for each token. The most that the budget
has room for is chosen; what gathers is ``fully_shard``'s own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn

from accel import selection
from accel.engine import sharding
from accel.engine.config import HybridEngineConfig
from accel.engine.sharding import Units
from accel.engine.spec import DecoderSpec, StackSpec
from accel.errors import BackendError, CapacityError
from accel.host import in_host_memory

# From the least memory to the most.
LAYER, PREFETCH, GROUPS, ALL = LEVELS = ("layer", "prefetch", "groups", "all")
# Of what is free, where no budget is given: the rest is for the cache and what layers compute.
_SHARE = 0.5


@dataclass(frozen=True)
class Gathering:
    """What was chosen.

    ``policy``   "all" at once, in "groups" of layers, "prefetch": a layer and meanwhile the next,
                 or one "layer"
    ``layers``   how many are gathered at a time
    ``bytes``    what is gathered takes at most, beside the shards
    ``budget``   what it may take
    ``why``      the reasons against what would gather more at a time
    """

    policy: str
    layers: int
    bytes: int
    budget: int
    why: tuple[str, ...] = ()

    def __str__(self) -> str:
        how = {
            ALL: "all parameters at once, for the whole rollout",
            GROUPS: f"{self.layers} layers at a time, in every forward",
            PREFETCH: "a layer, and the next while it runs, in every forward",
            LAYER: "a layer when it runs, in every forward",
        }[self.policy]
        return "; ".join([f"{how}: {self.bytes} bytes, {self.budget} permitted", *self.why])

    @property
    def level(self) -> int:
        return LEVELS.index(self.policy)


def planned(
    model: nn.Module, outer: nn.Module, spec: StackSpec, config: HybridEngineConfig
) -> Gathering | None:
    """What is chosen, as things are now, for a decoder that is sharded, or is going to be."""
    if not isinstance(spec, DecoderSpec):
        return None
    made = [] if config.shard is None else sharding.parts(model, spec)
    found = sharding.units(model, spec, outer, made)
    return None if found is None else choose(found, config, sharding.computed_like(model, outer))


def choose(units: Units, config: HybridEngineConfig, like: Tensor) -> Gathering:
    """What gathers the most at a time within ``gather_bytes``, or within half of what is free on
    ``like``'s device. CapacityError if ``gather_bytes`` has no room for a layer."""
    given = config.gather_bytes
    budget = _budget(like) if given is None else given
    why: list[str] = []
    for policy in reversed(LEVELS):
        reason = _against(policy, units, config)
        found = _gathering(policy, units, config, budget, why)
        if reason is None and found.bytes <= budget:
            return found
        why.append(f"not {policy}: {reason or f'{found.bytes} bytes'}")
    least = _gathering(LAYER, units, config, budget, why[:-1])
    if given is None:
        return least
    largest = max((size for _, size in units.passing), default=0)
    raise CapacityError(
        f"gather_bytes permits {given} bytes of gathered parameters, and a layer takes "
        f"{least.bytes} with what stays gathered around it: {largest}, the largest of "
        f"{len(units.passing)}, twice, since what is received is copied to where it is read, and "
        f"{sum(size for _, size in units.held)} around them; permit as much, or shard the model in "
        "smaller units"
    )


def lowered(chosen: Gathering, level: int, units: Units, config: HybridEngineConfig) -> Gathering:
    """What another process had to choose, whose memory is shorter."""
    if level >= chosen.level:
        return chosen
    why = [*chosen.why, f"not {chosen.policy}: another process has less memory"]
    return _gathering(LEVELS[level], units, config, chosen.budget, why)


def _against(policy: str, units: Units, config: HybridEngineConfig) -> str | None:
    """Why it cannot be, whatever it takes."""
    if policy == ALL and not config.pin_parameters:
        return "pin_parameters=False"
    if policy == ALL and units.nested:
        return "parts of layers are sharded by themselves, and a forward looks at their hooks"
    if policy == ALL and units.casts:
        return "a MixedPrecisionPolicy casts between layers"
    if policy == GROUPS and config.tp_gather_partition_size < 3:
        return f"tp_gather_partition_size={config.tp_gather_partition_size}"
    if policy == PREFETCH and config.tp_gather_partition_size < 2:
        return "tp_gather_partition_size=1"
    return None


def _gathering(
    policy: str, units: Units, config: HybridEngineConfig, budget: int, why: list[str]
) -> Gathering:
    whole = len(units.passing) or 1
    layers = {LAYER: 1, PREFETCH: 2, GROUPS: config.tp_gather_partition_size, ALL: whole}[policy]
    needed = units.needed(layers)
    if policy == ALL:
        needed = units.bytes + max(size for _, size in (*units.passing, *units.held))
    return Gathering(policy, layers, needed, budget, tuple(why))


def _budget(like: Tensor) -> int:
    """Half of what is free, of which processes of one machine have a share each; where nobody can
    say that, no limit."""
    try:
        accelerator = selection.get_accelerator()
    except BackendError:
        return 1 << 62
    same = accelerator.device_type == like.device.type
    if not same or not accelerator.supports("memory_info"):
        return 1 << 62
    others = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    return int(accelerator.available_memory() * _SHARE) // (others if in_host_memory(like) else 1)
