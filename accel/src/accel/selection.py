"""Choosing the accelerator: ``use_accelerator`` > ``set_accelerator`` > ``ACCEL_BACKEND`` > rank.

An explicit choice that cannot be had raises and says why. Nothing is chosen at import.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from accel import environment
from accel import registry as _registry
from accel.accelerator import Accelerator
from accel.errors import AccelWarning, AmbiguousBackendError, BackendError, NoBackendError
from accel.plugins import Candidate, why
from accel.registry import Registry

_scoped: ContextVar[Accelerator | None] = ContextVar("accel_accelerator", default=None)
_process_wide: Accelerator | None = None


@dataclass(frozen=True)
class Choice:
    """An accelerator and the sentence that says why it is the one."""

    accelerator: Accelerator
    reason: str


def get_accelerator() -> Accelerator:
    """The accelerator in force here; one object per backend and process.

    Runs no kernel and makes no device context, so that a fork right after it is safe.
    Raises a :class:`~accel.errors.BackendError` that says what is installed and why it was refused.
    """
    return choose().accelerator


def choose() -> Choice:
    """The accelerator in force here, with the reason."""
    scoped = _scoped.get()
    if scoped is not None:
        return Choice(scoped, "chosen by use_accelerator()")
    if _process_wide is not None:
        return Choice(_process_wide, "chosen by set_accelerator()")
    registry = _registry.registry()
    named = environment.read("ACCEL_BACKEND")
    if named is not None:
        try:
            return Choice(registry.accelerator(named), f"chosen by ACCEL_BACKEND={named}")
        except BackendError as error:
            raise type(error)(f"ACCEL_BACKEND={named}: {error}") from error
    return _automatic(registry)


def set_accelerator(choice: str | Accelerator | None) -> None:
    """Choose for the whole process: a backend's name, an accelerator, or None to undo.

    Bad input changes nothing.
    """
    global _process_wide
    _process_wide = None if choice is None else _resolve(choice)


@contextmanager
def use_accelerator(choice: str | Accelerator) -> Iterator[Accelerator]:
    """Choose for the body of a ``with`` (this thread or task only); may be nested."""
    accelerator = _resolve(choice)
    token = _scoped.set(accelerator)
    try:
        yield accelerator
    finally:
        _scoped.reset(token)


def reset() -> None:
    """Forget every choice, probe and binding; what is installed is read again on next use."""
    set_accelerator(None)
    _registry.swap(None)


def _resolve(choice: str | Accelerator) -> Accelerator:
    if isinstance(choice, Accelerator):
        return choice
    if isinstance(choice, str):
        return _registry.registry().accelerator(choice)
    raise TypeError(
        f"an accelerator is chosen by a backend's name or an accel.Accelerator, not {choice!r:.120}"
    )


def _automatic(registry: Registry) -> Choice:
    backends = registry.backends()
    available = [c for c in backends if not c.unavailable()]
    if not available:
        raise NoBackendError(_nothing_usable(registry))
    best = available[0]
    rank = best.backend.rank  # type: ignore[union-attr]
    rivals = [c for c in available if c.backend and c.backend.rank == rank]
    if len(rivals) > 1:
        names = " and ".join(repr(c.name) for c in rivals)
        raise AmbiguousBackendError(
            f"backends {names} are available with the same rank {rank}; choose one with "
            f"ACCEL_BACKEND={best.name}, accel.set_accelerator({best.name!r}) or use_accelerator"
        )
    _warn_if_only_the_host_is_left(registry, best)
    others = [c for c in backends if c is not best]
    reason = "the only backend installed" if not others else f"highest rank ({rank}) available"
    return Choice(registry.accelerator(best.name), reason)


def _warn_if_only_the_host_is_left(registry: Registry, best: Candidate) -> None:
    assert best.backend is not None
    refused = [
        c for c in registry.backends() if c.backend and not c.backend.host and c.unavailable()
        if c.backend.rank > best.backend.rank
    ]  # fmt: skip
    if best.backend.host and refused:
        causes = "".join(f"\n  {c.name}: {why(c)}" for c in refused)
        registry.warn_once(
            "only the host is left",
            f"accel runs on {best.name!r}, the host processor, because{causes}\n"
            f"  (silence this with ACCEL_BACKEND={best.name})",
            AccelWarning,
        )


def _nothing_usable(registry: Registry) -> str:
    refused = [c for c in registry.candidates if c.unavailable()]
    if refused:
        causes = "".join(f"\n  {c.name} ({c.distribution}): {why(c)}" for c in refused)
        return f"no installed backend can be used:{causes}"
    commands = " or ".join(_registry.install_commands())
    return f"no backend is installed; in a clone of accel: {commands}"
