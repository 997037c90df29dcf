"""Together: the parameters of a sharded model while a rollout runs, as ``gathering.py`` chose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from torch import nn

from accel.engine.config import HybridEngineConfig
from accel.engine.gathering import ALL, GROUPS, Gathering, choose, lowered
from accel.engine.generation.company import Company
from accel.engine.sharding import computed_like, is_sharded, part, units
from accel.engine.spec import DecoderSpec
from accel.layers.hooks import without_sharding


@contextmanager
def gathered(
    model: nn.Module, spec: DecoderSpec, config: HybridEngineConfig, company: Company
) -> Iterator[Gathering | None]:
    """All processes ask for a rollout; in the block parameters come together by what every one of
    them has room for, and are apart behind it, whatever ends it. None of a model that
    ``fully_shard`` has not seen. Training's own settings of it stay as they are."""
    found = units(model, spec)
    if found is None:
        company.begin(0)
        yield None
        return
    own = choose(found, config, computed_like(model))
    chosen = lowered(own, company.begin(own.level), found, config)
    with ExitStack() as stack:
        stack.callback(_end, model, company)
        company.gathers = chosen.policy != ALL
        if chosen.policy == ALL:
            with company.inside():
                for module in filter(is_sharded, model.modules()):
                    module.unshard()  # type: ignore[operator]
            stack.enter_context(without_sharding(model))
        else:
            passing = [module for module, _ in found.passing]
            step = chosen.layers if chosen.policy == GROUPS else 1
            for first in range(0, len(passing), step):
                begin = partial(_begin, passing[first + 1 : first + chosen.layers])
                stack.callback(passing[first].register_forward_pre_hook(begin).remove)
        yield chosen


def _begin(ahead: list[Any], *_: object) -> None:
    """Behind ``fully_shard``'s own hook: a module's forward waits for what is begun here."""
    for module in ahead:
        module.unshard(async_op=True)


def _end(model: Any, company: Company) -> None:
    if company.torn:  # something may have been begun that nobody waited for
        with suppress(RuntimeError, AttributeError):  # AttributeError: torch before 2.13
            model.reset_iter_state()
    part(model)
