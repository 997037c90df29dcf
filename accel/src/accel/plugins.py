"""Plugins: from entry points to candidates, each accepted or refused on its own.

Every entry point is loaded by itself, so a broken plugin becomes a refused candidate with its
traceback kept; pluggy's own entry-point loader would abort on the first and drop the second of
two equal names without a word. This module chooses nothing.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from accel import hookspecs
from accel.errors import PluginError, close_matches
from accel.hookspecs import API, GROUP, Backend
from accel.op_builder import OpBuilder
from accel.refusal import Refusal, sentence

HOOKS = ("accel_backend", "accel_op_builders", "accel_policies")


@dataclass
class Candidate:
    """One plugin: what it offers, or why it was refused.

    ``refusals`` are reasons against the whole plugin; whether its device is there is
    ``unavailable()``, asked when somebody wants to know and remembered.
    """

    label: str
    distribution: str
    backend: Backend | None = None
    builders: list[OpBuilder] = field(default_factory=list)
    policies: list[type[Any]] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    traceback: str | None = None
    _probed: list[Refusal] | None = None

    @property
    def name(self) -> str:
        """The backend's name, or the entry point's for a kernel pack or a broken plugin."""
        return self.backend.name if self.backend else self.label

    def unavailable(self) -> list[Refusal]:
        """Why the plugin or its device cannot be used; empty when it can."""
        if self.refusals or self.backend is None:
            return self.refusals
        if self._probed is None:
            self._probed = self._probe(self.backend)
        return self._probed

    def _probe(self, backend: Backend) -> list[Refusal]:
        try:
            found = backend.probe()
            if isinstance(found, (list, tuple)) and all(isinstance(r, Refusal) for r in found):
                return list(found)
            have = f"{type(found).__name__}: {found!r:.80}"
            return [Refusal("probe", "a list of Refusal from probe()", have, self._report())]
        except Exception as error:
            self.traceback = traceback.format_exc()
            return [Refusal("probe", "a probe that returns", repr(error), self._report())]

    def step_aside(self, newer: Candidate) -> None:
        """Be unavailable because ``newer`` supersedes this backend."""
        want = f"backend {newer.name!r} to be absent"
        have = f"it is available and supersedes {self.name!r}"
        self._probed = [Refusal("superseded", want, have, f"uninstall {newer.distribution}")]

    def _report(self) -> str:
        return f"report it to the authors of {self.distribution}"

    def refuse(self, code: str, want: str, have: str, remedy: str = "") -> None:
        self.refusals.append(Refusal(code, want, have, remedy or self._report()))


def discover() -> list[Candidate]:
    """Candidates for all installed entry points, in the order of their names."""
    found = sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))
    return [load(entry.name, _distribution(entry), entry.load) for entry in found]


def from_objects(plugins: Iterable[object]) -> list[Candidate]:
    """Candidates for plugin objects already in hand (tests, notebooks)."""
    found = []
    for plugin in plugins:
        name = getattr(plugin, "__name__", type(plugin).__name__)
        found.append(load(name, name, partial(_itself, plugin)))
    return found


def _itself(plugin: object) -> object:
    return plugin


def _distribution(entry: EntryPoint) -> str:
    dist = entry.dist
    return f"{dist.name} {dist.version}" if dist else entry.value


def load(label: str, distribution: str, get: Callable[[], object]) -> Candidate:
    """Import one plugin, check it and ask its hooks; whatever goes wrong stays in its candidate."""
    candidate = Candidate(label, distribution)
    try:
        plugin = get()
        if not _speaks_our_api(candidate, plugin):
            return candidate
        _ask(_register(plugin, f"{label} ({distribution})"), plugin, candidate)
    except PluginError as error:
        candidate.refuse("contract", "a plugin that keeps the hooks' rules", str(error))
    except (Exception, SystemExit) as error:
        candidate.traceback = traceback.format_exc()
        candidate.refuse("load", "a plugin that loads", f"{type(error).__name__}: {error}")
    return candidate


def _speaks_our_api(candidate: Candidate, plugin: object) -> bool:
    ours = ".".join(map(str, API))
    theirs = getattr(plugin, "ACCEL_API", None)
    try:
        major, minor = (int(part) for part in theirs.split("."))  # type: ignore[union-attr]
    except (AttributeError, TypeError, ValueError):
        candidate.refuse("api", f'ACCEL_API = "{ours}" in the plugin', f"ACCEL_API = {theirs!r}")
        return False
    if major != API[0] or minor > API[1]:
        remedy = f"install a release of {candidate.distribution} that fits this accel"
        candidate.refuse("api", f"a plugin for accel's API {ours}", f"one for {theirs}", remedy)
        return False
    return True


def _register(plugin: object, name: str) -> pluggy.PluginManager:
    """A manager that holds this plugin alone: none can spoil another's. A misspelt hook is an
    error."""
    manager = pluggy.PluginManager("accel")
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin, name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(_explain(plugin, error)) from None
    return manager


def _explain(plugin: object, error: pluggy.PluginValidationError) -> str:
    unknown = [
        name
        for name in dir(plugin)
        if name not in HOOKS and hasattr(getattr(plugin, name, None), "accel_impl")
    ]
    if unknown:
        return f"unknown hook {unknown[0]!r}; {close_matches(unknown[0], HOOKS)}"
    return str(error)


def _ask(manager: pluggy.PluginManager, plugin: object, candidate: Candidate) -> None:
    implemented = [caller.name for caller in manager.get_hookcallers(plugin) or ()]
    if not implemented:
        raise PluginError(f"implements none of the hooks {', '.join(HOOKS)}")
    # A hook that returns None counts as not returned with pluggy; here it is an answer to refuse.
    for hook in implemented:
        answers = getattr(manager.hook, hook)() or [None]
        if hook == "accel_backend":
            candidate.backend = _checked_backend(answers[0])
        elif hook == "accel_op_builders":
            classes = _checked_classes(hook, answers[0], OpBuilder)
            for cls in classes:
                cls.check_definition()
            candidate.builders = [cls() for cls in classes]
        else:
            candidate.policies = _checked_classes(hook, answers[0], object)


_TYPES: dict[str, type | tuple[type, ...]] = {
    "name": str, "vendor": str, "device_type": str, "version": str, "rank": int,
    "accelerator": str, "supersedes": tuple, "expectations": (str, type(None)), "host": bool,
    "variables": tuple, "caveat": str,
}  # fmt: skip


def _checked_backend(answer: object) -> Backend:
    if not isinstance(answer, Backend):
        raise PluginError(f"accel_backend() must return an accel.Backend, not {answer!r:.120}")
    for name, kind in _TYPES.items():
        value = getattr(answer, name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise PluginError(f"Backend.{name} must be {kind}, not {value!r:.120}")
    for name in ("supersedes", "variables"):
        if not all(isinstance(item, str) for item in getattr(answer, name)):
            raise PluginError(f"Backend.{name} must hold strings, not {getattr(answer, name)!r}")
    if answer.name in answer.supersedes:
        raise PluginError(f"backend {answer.name!r} cannot supersede itself")
    if not callable(answer.probe):
        raise PluginError(f"Backend.probe must be callable, not {answer.probe!r:.120}")
    if answer.accelerator.count(":") != 1:
        raise PluginError(
            f'Backend.accelerator must be "module:Class", not {answer.accelerator!r:.120}'
        )
    return answer


def _checked_classes(hook: str, answer: object, base: type) -> list[type[Any]]:
    if not isinstance(answer, Sequence) or isinstance(answer, str):
        raise PluginError(f"{hook}() must return a list of classes, not {answer!r:.120}")
    for item in answer:
        if not (isinstance(item, type) and issubclass(item, base)):
            raise PluginError(f"{hook}() must list {base.__name__} classes, not {item!r:.120}")
    return list(answer)


def mark_conflicts(candidates: Iterable[Candidate]) -> None:
    """Refuse every candidate that claims what another distribution claims as well: a backend's
    name, or an implementation's id."""
    claims: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        for claim in _claims(candidate):
            claims.setdefault(claim, []).append(candidate)
    for claim, rivals in claims.items():
        if len(rivals) > 1:
            claimed = " and ".join(sorted(rival.distribution for rival in rivals))
            for rival in rivals:
                want = f"one distribution that provides {claim}"
                rival.refuse("conflict", want, claimed, "uninstall one of them")


def _claims(candidate: Candidate) -> list[str]:
    names = [f"backend {candidate.backend.name!r}"] if candidate.backend else []
    impls = {impl for builder in candidate.builders for impl in builder.impls}
    return names + [f"{impl.op} by {impl.id!r}" for impl in impls]


def why(candidate: Candidate) -> str:
    """All reasons against a candidate on one line."""
    return sentence(candidate.unavailable())
