"""ModelPolicy: how the engine learns to read an architecture; others add theirs by a plugin."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import nn

from accel import registry as _registry
from accel.engine import policies
from accel.engine.spec import DecoderSpec, EncoderSpec
from accel.errors import PluginError
from accel.refusal import Refusal


class ModelPolicy:
    """Reads one architecture into a :class:`~accel.engine.spec.DecoderSpec`, or, of a model that
    does not generate, into an :class:`~accel.engine.spec.EncoderSpec`.

    ``name``     of the architecture
    ``model``    class name of its model with the head; of an encoder without
    ``encodes``  True for an encoder
    ``source``   module its classes come from: one whose ``forward`` was overridden elsewhere means
                 something else, and is refused

    ``small``    settings that a small model of it cannot do without, beside the usual sizes, which
                 the conformance suite sets: such as how many experts

    A plugin returns its policies from the hook ``accel_policies``.
    """

    name: ClassVar[str]
    model: ClassVar[str]
    source: ClassVar[str]
    encodes: ClassVar[bool] = False
    small: ClassVar[Mapping[str, Any]] = {}

    def serves(self, model: nn.Module) -> bool:
        """True if the model is of this architecture, a subclass of it included."""
        return any(
            base.__name__ == self.model and base.__module__ == self.source
            for base in type(model).__mro__
        )

    def reasons(self, config: Any) -> list[Refusal]:
        """Why a model of this architecture with this configuration cannot be served."""
        return []

    def spec(self, config: Any) -> DecoderSpec | EncoderSpec:
        """The architecture as this configuration has it."""
        raise NotImplementedError(f"{type(self).__name__} must say what a {self.model} is")


def known() -> Iterator[ModelPolicy]:
    """Every policy: plugins' first, so that they may read an architecture better than we do.

    PluginError for what a plugin lists that is none.
    """
    for plugin, policy in _registry.registry().policies_of_plugins():
        if not issubclass(policy, ModelPolicy):
            raise PluginError(
                f"plugin {plugin.label!r} of {plugin.distribution}: accel_policies() must list "
                f"subclasses of accel.ModelPolicy, not {policy!r}"
            )
        yield policy()
    for found in pkgutil.iter_modules(policies.__path__):
        yield importlib.import_module(f"{policies.__name__}.{found.name}").POLICY()
