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


def has_global_hooks() -> bool:
    """True if hooks expect that of every module."""
    return bool(torch_module._has_any_global_hook())
