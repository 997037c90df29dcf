"""Forward: an object in the place of a module's ``forward``."""

from __future__ import annotations

from typing import Any

from torch import nn


class Forward:
    """Called by ``nn.Module.__call__`` like the method it stands for.

    It lies in the instance's ``__dict__`` and points at its module, so deepcopy and pickle take it
    along, pointing at the copy, and deleting it leaves the module as it was.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must say what it computes")

    def install(self) -> None:
        """Take the place of the module's forward."""
        self.module.forward = self

    def remove(self) -> None:
        """Leave the module as it was."""
        del self.module.__dict__["forward"]


class Branch(Forward):
    """Attention or MLP of a layer, whose parts the spec names from the layer on."""

    def __init__(self, module: nn.Module, path: str | None) -> None:
        super().__init__(module)
        self.prefix = f"{path}." if path else ""

    def _part(self, path: str) -> nn.Module:
        return self.module.get_submodule(path.removeprefix(self.prefix))


def installed(module: nn.Module) -> Forward | None:
    """The Forward in a module's place, if there is one."""
    found = module.__dict__.get("forward")
    return found if isinstance(found, Forward) else None
