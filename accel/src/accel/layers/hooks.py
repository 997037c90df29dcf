"""Who watches a module."""

from __future__ import annotations

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
