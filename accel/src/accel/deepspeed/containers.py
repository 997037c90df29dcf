"""What DeepSpeed calls containers: the forwards of one decoder layer, and one that gathers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from accel.engine.forward import Forward, installed
from accel.engine.planning import Plan, Replacement
from accel.engine.policy import ModelPolicy
from accel.engine.stats import Stats
from accel.errors import UnsupportedModelError
from accel.layers import gathered


@dataclass(frozen=True)
class InferenceContainer:
    """The forwards that stand in the places of a decoder layer's and its parts', the layer's first.

    They serve training, prompts and decoding alike and read the layer's own parameters, so nothing
    is converted back and forth.
    """

    layer_id: int
    module: nn.Module
    policy: ModelPolicy
    replacements: tuple[Replacement, ...]

    def install(self) -> None:
        """Put them in their places."""
        for replacement in self.replacements:
            replacement.forward.install()

    def remove(self) -> None:
        """Leave the layer as it was before; where they stand in no place, nothing."""
        for replacement in self.replacements:
            found = installed(replacement.forward.module)
            if found is not None:
                found.remove()


def containers(plan: Plan) -> list[InferenceContainer]:
    """Of every decoder layer of a plan, in their order; they are not installed."""
    spec, policy = plan.require(), plan.policy
    assert policy is not None
    found = []
    for layer_id, path in enumerate(spec.layer_paths()):
        mine = (r for r in plan.replacements if f"{r.path}.".startswith(f"{path}."))
        layer = plan.model.get_submodule(path)
        found.append(InferenceContainer(layer_id, layer, policy, tuple(mine)))
    return found


class GatheredForward(Forward):
    """A layer's forward within :func:`accel.layers.gathered`: parameters whose values lie elsewhere
    are there while it runs, and away again after. ``stats`` has the time that took as "gather"."""

    def __init__(self, module: nn.Module, stats: Stats) -> None:
        super().__init__(module)
        inner = installed(module)
        if inner is None:
            raise UnsupportedModelError(
                f"{type(module).__name__} is not the engine's any more; create_inference_module() "
                "makes it so again"
            )
        self.inner: Forward = inner.inner if isinstance(inner, GatheredForward) else inner
        self.stats = stats

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            with self.stats.phase("gather"):
                stack.enter_context(gathered(*self.module.parameters()))
            return self.inner(*args, **kwargs)
