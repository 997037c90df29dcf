"""Together: the parameters of a sharded model while a rollout runs, as ``gathering.py`` chose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from accel.engine.config import HybridEngineConfig
from accel.engine.gathering import ALL, GROUPS, PREFETCH, Gathering, choose, lowered
from accel.engine.generation.company import Company
from accel.engine.sharding import Units, begin_at, computed_like, is_sharded, part, reasons, units
from accel.engine.spec import DecoderSpec
from accel.errors import UnsupportedCapability, UnsupportedModelError
from accel.layers.hooks import without_sharding
from accel.refusal import sentence


@contextmanager
def gathered(
    model: nn.Module, outer: nn.Module, spec: DecoderSpec, config: HybridEngineConfig,
    company: Company, *, own: bool = False,
) -> Iterator[Gathering | None]:  # fmt: skip
    """All processes ask for a rollout; in the block parameters come together by what every one of
    them has room for, and are apart behind it, whatever ends it: those of the model, and of a
    wrapper ``outer`` around it. None of a model that ``fully_shard`` has not seen. Training's own
    settings of it stay as they are. UnsupportedModelError where parameters are shards that no unit
    in sight gathers. Where DeepSpeed gathers them, all run the model's ``own`` forwards or none:
    UnsupportedCapability.
    """
    refused = list(reasons(model, spec, outer))
    if refused:
        raise UnsupportedModelError(f"generate: {sentence(refused)}")
    found = units(model, spec, outer)
    if found is None:
        if company.begin(int(own)) < int(own):
            raise UnsupportedCapability(
                "fallback: DeepSpeed's ZeRO-3 gathers parameters as all ranks come to them, in one "
                "order, and transformers' forwards here beside the engine's on another rank have "
                "two; ask all ranks for what falls back"
            )
        yield None
        return
    for root in found.around[:1]:
        begin_at(root)
    mine = choose(found, config, computed_like(model, outer))
    chosen = lowered(mine, company.begin(mine.level), found, config)
    with ExitStack() as stack:
        stack.callback(_end, outer, found, company)
        company.gathers = chosen.policy != ALL
        begun = list(found.around)
        if chosen.policy == ALL:
            begun += [m for m in model.modules() if is_sharded(m) and m not in begun]
        with company.inside():
            for module in begun:
                module.unshard()
        if chosen.policy == ALL:
            stack.enter_context(without_sharding(model))
        else:
            for hook in _hooks(found.layers, chosen):
                stack.callback(hook.remove)
        yield chosen


def _hooks(layers: Sequence[Any], chosen: Gathering) -> Iterator[RemovableHandle]:
    """Before ``fully_shard``'s own, which waits for what is begun here and drops what it came in;
    of what it begins itself it keeps that until the next is there."""
    for place, layer in enumerate(layers):
        if chosen.policy != GROUPS or place % chosen.layers == 0:
            yield layer.register_forward_pre_hook(partial(_begin, [layer]), prepend=True)
        ahead = layers[place + 1 : place + chosen.layers]
        if ahead and (chosen.policy == PREFETCH or place % chosen.layers == 0):
            yield layer.register_forward_pre_hook(partial(_begin, ahead))


def _begin(layers: Sequence[Any], *_: object) -> None:
    for layer in layers:
        layer.unshard(async_op=True)


def _end(outer: nn.Module, found: Units, company: Company) -> None:
    if company.torn:  # something may have been begun that nobody waited for
        with suppress(RuntimeError, AttributeError):  # AttributeError: torch before 2.13
            for root in found.around[:1]:
                root.reset_iter_state()
    part(outer)
