"""The registry: all candidates of one process, the accelerators made from them, and what was said.

It knows what is installed; :mod:`accel.selection` chooses an accelerator from it and
:mod:`accel.ops` the implementation of an op. Made on first use, dropped by :func:`reset`.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.resources import files
from typing import Any

from accel import environment, plugins
from accel.accelerator import Accelerator
from accel.errors import (
    AccelError,
    AccelWarning,
    BackendConflictError,
    BackendNotFoundError,
    BackendUnavailableError,
    ConfigError,
    PluginError,
    did_you_mean,
)
from accel.op_builder import Impl, OpBuilder
from accel.plugins import Candidate
from accel.refusal import Refusal


class Registry:
    """What is installed, loaded once; accelerators and builders are made from it on demand."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        self.candidates = list(candidates)
        plugins.mark_conflicts(self.candidates)
        self._mark_superseded()
        self._accelerators: dict[str, Accelerator] = {}
        self._said: set[object] = set()
        self._lock = threading.RLock()
        # What ops bound and served here; filled by accel.ops.
        self.policies: dict[object, Any] = {}
        self.load_failures: dict[Impl, Refusal] = {}
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        broken = [c for c in self.candidates if c.refusals]
        for candidate in broken:
            self.warn_once(
                (candidate.label, plugins.why(candidate)),
                f"plugin {candidate.label!r} of {candidate.distribution} is not used: "
                f"{plugins.why(candidate)} (`accel info` shows more)",
                AccelWarning,
            )
        self._check_variables(broken)

    def _check_variables(self, broken: list[Candidate]) -> None:
        try:
            environment.check(
                name for c in self.candidates if c.backend for name in c.backend.variables
            )
        except ConfigError as error:
            if not broken:
                raise
            # It may be a broken plugin's, which must not break everything else.
            self.warn_once("variable", str(error), AccelWarning)

    def _mark_superseded(self) -> None:
        # Availability is only probed where somebody claims to supersede: a probe costs time.
        for newer in self.candidates:
            if newer.backend and newer.backend.supersedes and not newer.unavailable():
                for older in self.candidates:
                    if older.backend and older.backend.name in newer.backend.supersedes:
                        older.step_aside(newer)

    def backends(self) -> list[Candidate]:
        """The candidates that provide a backend, highest rank first, then by name."""
        found = [c for c in self.candidates if c.backend]
        return sorted(found, key=lambda c: (-c.backend.rank, c.name))  # type: ignore[union-attr]

    def backend(self, name: str) -> Candidate:
        """The candidate that provides ``name``; errors say what is installed."""
        rivals = [c for c in self.candidates if c.backend and c.backend.name == name]
        if len(rivals) > 1:
            raise BackendConflictError(f"backend {name!r} cannot be used: {plugins.why(rivals[0])}")
        if rivals:
            return rivals[0]
        broken = [c for c in self.candidates if c.label == name]
        if broken:
            raise BackendUnavailableError(
                f"the plugin {name!r} of {broken[0].distribution} gives no backend: "
                f"{plugins.why(broken[0]) or 'it is a kernel pack'}"
            )
        names = [c.name for c in self.backends()]
        hints = [f"in a clone of accel: {c}" for c in install_commands() if f"_{name}`" in c]
        hint = hints[0] if hints else did_you_mean(name, names)
        raise BackendNotFoundError(
            f"backend {name!r} is not installed; installed: {', '.join(names) or 'none'}"
            + (f"; {hint}" if hint else "")
        )

    def accelerator(self, name: str) -> Accelerator:
        """The accelerator of a backend by name, made once; raises with the reasons if refused."""
        with self._lock:
            if name not in self._accelerators:
                candidate = self.backend(name)
                if candidate.unavailable():
                    raise BackendUnavailableError(
                        f"backend {name!r} of {candidate.distribution} is installed and cannot "
                        f"be used: {plugins.why(candidate)}"
                    )
                self._accelerators[name] = _make_accelerator(candidate)
            return self._accelerators[name]

    def builders(self) -> list[tuple[OpBuilder, list[Refusal]]]:
        """All builders of plugins, each with the reasons its plugin's device cannot be used."""
        return [
            (builder, candidate.unavailable())
            for candidate in self.candidates
            for builder in candidate.builders
        ]

    def builders_of(self, name: str) -> list[OpBuilder]:
        """The builders that the plugin of backend ``name`` brings itself."""
        return self.backend(name).builders

    def policies_of_plugins(self) -> list[tuple[Candidate, type[Any]]]:
        """All model policies, each with the plugin that brings it."""
        return [
            (candidate, policy) for candidate in self.candidates for policy in candidate.policies
        ]

    def warn_once(self, key: object, message: str, category: type[AccelWarning]) -> None:
        """Warn the first time ``key`` is seen in this registry's life."""
        with self._lock:
            if key in self._said:
                return
            self._said.add(key)
        warnings.warn(message, category, stacklevel=_depth_of_caller())


# What stands between a user's line and a warning: torch's modules, decorators and tracing.
_MACHINERY = frozenset({"accel", "torch", "pluggy", "contextlib"})


def _depth_of_caller() -> int:
    """Stack level of the first frame outside accel and what calls it for the user, for a warning
    to point at. (warnings' own ``skip_file_prefixes`` needs Python 3.12.)"""
    depth, frame = 1, sys._getframe(1)
    # The doors' generated functions have no module: dynamo would look for their names in it.
    while frame.f_back and _package(frame.f_globals.get("__name__", "accel")) in _MACHINERY:
        depth, frame = depth + 1, frame.f_back
    return depth


def _package(module: object) -> str:
    return str(module).partition(".")[0]


def install_commands() -> list[str]:
    """How to install the backends that come with accel."""
    names = files("accel").joinpath("known_backends.txt").read_text().split()
    return [f"`pip install ./{name}`" for name in names]


def _make_accelerator(candidate: Candidate) -> Accelerator:
    backend = candidate.backend
    assert backend is not None
    module, _, attribute = backend.accelerator.partition(":")
    try:
        cls = getattr(import_module(module), attribute, None)
    except Exception as error:
        raise PluginError(
            f"{candidate.distribution}: {backend.accelerator} cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Accelerator)):
        raise PluginError(
            f"{candidate.distribution}: {backend.accelerator} must be a subclass of "
            f"accel.Accelerator, not {cls!r}"
        )
    try:
        return cls(backend)
    except AccelError:
        raise
    except Exception as error:
        raise PluginError(
            f"{candidate.distribution}: {backend.accelerator} cannot be made: "
            f"{type(error).__name__}: {error}"
        ) from error


current: Registry | None = None
_making = threading.Lock()
# Called with the registry that went, by who keeps things of its outside it.
on_swap: list[Callable[[Registry | None], None]] = []


def registry() -> Registry:
    """The registry of this process, made from the installed entry points on first use."""
    global current
    if current is None:
        with _making:
            if current is None:
                current = Registry(plugins.discover())
    return current


def swap(new: Registry | None) -> Registry | None:
    """Put another registry in place (None: make a new one on next use); returns the old one."""
    global current
    with _making:
        old, current = current, new
    for forget in on_swap:
        forget(old)
    return old
