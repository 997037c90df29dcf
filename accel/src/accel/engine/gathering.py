"""Gathering: how the parameters of a sharded model come together for a rollout.

All at once before it, which costs the most memory and one gathering a rollout; some layers at a
time, or a layer and the next, which cost one a token. The most that the budget has room for is
chosen; what gathers is ``fully_shard``'s own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch.distributed as dist
from torch import Tensor

from accel import selection
from accel.engine.config import HybridEngineConfig
from accel.engine.sharding import Units
from accel.errors import BackendError, CapacityError
from accel.host import in_host_memory

# From the least memory to the most.
LAYER, GROUPS, ALL = "layer", "groups", "all"
LEVELS = (LAYER, GROUPS, ALL)
# Of what is free, where no budget is given: the rest is for the cache and what layers compute.
_SHARE = 0.5


@dataclass(frozen=True)
class Gathering:
    """What was chosen.

    ``policy``   "all" at once, in "groups" of layers, or a "layer" and the next
    ``layers``   how many units are gathered at a time, of which one runs
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
            LAYER: "a layer, and the next while it runs, in every forward",
        }[self.policy]
        return "; ".join([f"{how}: {self.bytes} bytes, {self.budget} permitted", *self.why])

    @property
    def level(self) -> int:
        return LEVELS.index(self.policy)


def choose(units: Units, config: HybridEngineConfig, like: Tensor) -> Gathering:
    """What gathers the most at a time within ``gather_bytes``, or within half of what is free on
    ``like``'s device. CapacityError if not even two layers fit in ``gather_bytes``."""
    given = config.gather_bytes
    budget, why = (_budget(like), []) if given is None else (given, [])
    least = units.needed(1)
    whole = units.bytes + max(size for _, size in (*units.passing, *units.held))
    if not config.pin_parameters:
        why.append("not all at once: pin_parameters=False")
    elif units.nested or units.casts:
        what = "parts of layers are sharded by themselves" if units.nested else (
            "a MixedPrecisionPolicy casts between layers")  # fmt: skip
        why.append(f"not all at once: {what}, which training does with hooks")
    elif whole > budget:
        why.append(f"not all at once: {whole} bytes")
    else:
        return Gathering(ALL, len(units.passing), whole, budget)
    size = config.tp_gather_partition_size
    grouped = units.needed(size)
    if size < 2:
        why.append(f"not in groups: tp_gather_partition_size={size}")
    elif grouped > budget:
        why.append(f"not {size} layers at a time: {grouped} bytes")
    else:
        return Gathering(GROUPS, size, grouped, budget, tuple(why))
    if given is not None and least > given:
        raise CapacityError(
            f"gather_bytes permits {given} bytes of gathered parameters, and a layer and what "
            f"stays gathered around it take {least}: twice the largest of {len(units.passing)} "
            f"layers, {max(size for _, size in units.passing)}, since what is received is copied, "
            f"and {sum(size for _, size in units.held)} around them; permit as much, or shard the "
            "model in smaller units"
        )
    return Gathering(LAYER, min(2, len(units.passing)), least, budget, tuple(why))


def lowered(chosen: Gathering, level: int, units: Units, config: HybridEngineConfig) -> Gathering:
    """What another process had to choose, whose memory is shorter."""
    if level >= chosen.level:
        return chosen
    size = config.tp_gather_partition_size if LEVELS[level] == GROUPS else 1
    why = (*chosen.why, "another process has less memory")
    return replace(
        chosen, policy=LEVELS[level], layers=max(size, 2), bytes=units.needed(size), why=why
    )


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
