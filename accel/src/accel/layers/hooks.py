"""Who watches a module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules import module as torch_module

_KINDS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def has_hooks(module: nn.Module) -> bool:
    """True if hooks of its own expect ``module`` to be called as a module."""
    return any(getattr(module, kind) for kind in _KINDS)


def forward_hooks(model: nn.Module) -> list[tuple[int, ...]]:
    """Those of all modules together and of each, by their numbers, of which torch gives none
    twice."""
    return [
        (*torch_module._global_forward_pre_hooks, *torch_module._global_forward_hooks),
        *((*m._forward_pre_hooks, *m._forward_hooks) for m in model.modules()),
    ]


def has_global_hooks() -> bool:
    """True if hooks expect that of every module."""
    return bool(torch_module._has_any_global_hook())


# Whose hooks gather a module's parameters and look at nothing else.
_SHARDING = "torch.distributed.fsdp"


def is_watched(module: nn.Module) -> bool:
    """True if hooks other than those of ``fully_shard`` expect ``module`` to be called."""
    kinds = (getattr(module, kind).values() for kind in _KINDS)
    return any(not _shards(hook) for hooks in kinds for hook in hooks)


@contextmanager
def without_sharding(model: nn.Module) -> Iterator[None]:
    """In the block hooks of ``fully_shard`` are not called: parameters stay as they are."""
    tables = [getattr(m, kind) for m in model.modules() for kind in _KINDS[:2]]
    before = [(table, dict(table)) for table in tables if any(map(_shards, table.values()))]
    try:
        for table, hooks in before:
            for number in [n for n, hook in hooks.items() if _shards(hook)]:
                del table[number]
        yield
    finally:
        for table, hooks in before:
            new = {number: hook for number, hook in table.items() if number not in hooks}
            gone = {n for n, hook in hooks.items() if n not in table and not _shards(hook)}
            table.clear()  # their order counts
            table.update({n: hook for n, hook in hooks.items() if n not in gone} | new)


def _shards(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(_SHARDING)
