"""What the engine does not serve, by transformers' own ``generate``, if the caller says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from accel import registry as _registry
from accel.engine.forward import installed
from accel.errors import FallbackWarning, OpArgumentError, UnsupportedCapability

TRANSFORMERS = "transformers"


def require_known(fallback: str | None) -> None:
    """OpArgumentError unless it is one there is."""
    if fallback not in (None, TRANSFORMERS):
        raise OpArgumentError(f"fallback must be {TRANSFORMERS!r} or None; found {fallback!r}")


def by_transformers(
    model: nn.Module, refused: UnsupportedCapability, given: dict[str, Any], ours: dict[str, Any]
) -> Any:
    """The model's own ``generate``, called with what was ``given``.

    UnsupportedCapability, by name, if it was also asked for what only the engine has: ``ours``.
    """
    asked = [name for name, value in ours.items() if value is not None and value is not False]
    if asked:
        raise UnsupportedCapability(f"{refused}, which does not take {', '.join(asked)}")
    _registry.registry().warn_once(
        ("engine", "generate", str(refused)),
        f"{refused}, as here: its tokens have not the values that training gives them",
        FallbackWarning,
    )
    own: Any = type(model)
    with _own_forwards(model):
        return own.generate(model, **{n: value for n, value in given.items() if value is not None})


@contextmanager
def _own_forwards(model: nn.Module) -> Iterator[None]:
    """The model as transformers made it."""
    ours = [found for module in model.modules() if (found := installed(module)) is not None]
    try:
        for forward in ours:
            forward.remove()
        yield
    finally:
        for forward in ours:
            forward.install()
