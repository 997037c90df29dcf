"""What the engine does not serve, by transformers' own ``generate``, if the caller says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from accel import registry as _registry
from accel.engine.forward import installed
from accel.engine.generation.company import Company
from accel.engine.generation.request import Asked
from accel.errors import FallbackWarning, OpArgumentError, UnsupportedCapability

TRANSFORMERS = "transformers"


def require_known(fallback: str | None) -> None:
    """OpArgumentError unless it is one there is."""
    if fallback not in (None, TRANSFORMERS):
        raise OpArgumentError(f"fallback must be {TRANSFORMERS!r} or None; found {fallback!r}")


def require_transferable(asked: Asked, refused: UnsupportedCapability) -> None:
    """What was ``refused``, unless a ``fallback`` is asked for; UnsupportedCapability, by name, if
    what only the engine has is asked for beside it."""
    if asked.fallback is None:
        raise refused
    if ours := asked.ours():
        raise UnsupportedCapability(f"{refused}, which does not take {', '.join(ours)}")


def by_transformers(
    model: nn.Module, asked: Asked, refused: UnsupportedCapability, company: Company, *,
    grouped: bool = False,
) -> Any:  # fmt: skip
    """The model's own ``generate``, called with what was asked.

    Where ``company`` gathers parameters forward by forward, every one of its forwards is announced
    to the others, who run along. There, and where ranks are ``grouped`` for one rollout, a process
    without prompts gets its ids back.
    """
    require_transferable(asked, refused)
    fed = asked.ids if asked.embeds is None else asked.embeds
    with _own_forwards(model):
        if (company or grouped) and not len(fed if fed is not None else ()):
            found = fed
        else:
            found = _made(model, asked, refused, company)
        # Others' too may be the model's own, and DeepSpeed compares in which order modules run.
        company.keep(partial(_idle, model))
    return found


def _made(model: nn.Module, asked: Asked, refused: UnsupportedCapability, company: Company) -> Any:
    _registry.registry().warn_once(
        ("engine", "generate", str(refused)),
        f"{refused}, as here: its tokens have not the values that training gives them",
        FallbackWarning,
    )
    own: Any = type(model)
    given = {name: value for name, value in asked.given().items() if value is not None}
    if company:  # which knows who goes on; transformers would ask by messages of its own
        given["synced_gpus"] = False
    with _announced(model, company):
        return own.generate(model, **given)


@torch.no_grad()
def _idle(model: nn.Module) -> None:
    """A forward of one token, for others' sake."""
    model(torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device))


@contextmanager
def _announced(model: nn.Module, company: Company) -> Iterator[None]:
    """Every forward within a ``company.forward()``, which one that raises does not leave."""
    running = []

    def begin(*_: object) -> None:
        running.append(company.forward())
        running[-1].__enter__()

    def end(*_: object) -> None:
        running.pop().__exit__(None, None, None)

    hooks = [model.register_forward_pre_hook(begin, prepend=True),
             model.register_forward_hook(end)]  # fmt: skip
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
