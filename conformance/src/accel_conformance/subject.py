"""The subject: what a run tests, namely a backend's accelerator and what serves ops on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from accel import plugins as _plugins
from accel import registry as _registry
from accel.accelerator import Accelerator
from accel.contracts import CONTRACTS
from accel.ops import catalog
from accel.plugins import Candidate
from accel.registry import Registry
from accel.torch_impls import ANY_DEVICE
from accel_conformance.target import Target


@dataclass(frozen=True)
class Subject:
    """A backend's accelerator, and the implementations that serve ops on its device: the
    backend's own, those of kernel packs for the device, and the core's. ``seed`` is that of inputs
    that are drawn."""

    accelerator: Accelerator
    candidate: Candidate
    targets: tuple[Target, ...]
    seed: int = 0

    @property
    def device(self) -> torch.device:
        return self.accelerator.device()

    def dtypes(self, target: Target) -> list[torch.dtype]:
        """What the implementation lists, the device computes in and the contract bounds."""
        return [
            dtype
            for dtype in self.accelerator.supported_dtypes()
            if dtype in target.impl.dtypes and dtype in target.contract.tolerance
        ]


def find(backend: str, seed: int = 0) -> Subject:
    """The subject of a backend's name; BackendError says why it cannot be had."""
    registry = _registry.registry()
    accelerator = registry.accelerator(backend)
    order = list(CONTRACTS)
    targets = sorted(_targets(registry, backend, accelerator), key=lambda t: order.index(t.op))
    return Subject(accelerator, registry.backend(backend), tuple(targets), seed)


def _targets(registry: Registry, backend: str, accelerator: Accelerator) -> Iterator[Target]:
    # Another backend's kernels for the same device type are that backend's to prove.
    others = {
        id(builder)
        for candidate in registry.candidates
        if candidate.backend and candidate.backend.name != backend
        for builder in candidate.builders
    }
    for entry in catalog.entries():
        serves = entry.builder.device_type in (ANY_DEVICE, accelerator.device_type)
        if serves and id(entry.builder) not in others:
            contract = CONTRACTS[entry.impl.op]
            yield Target(contract, entry.impl, entry.builder, accelerator.device())


@contextmanager
def installed_too(plugins: Sequence[object]) -> Iterator[None]:
    """These plugin objects are installed in the body, beside what is installed anyway."""
    if not plugins:
        yield
        return
    standing = _registry.registry()
    # Copies: a conflict with one of the newcomers must not outlive the body.
    copies = [replace(c, refusals=list(c.refusals)) for c in standing.candidates]
    _registry.swap(Registry([*copies, *_plugins.from_objects(plugins)]))
    try:
        yield
    finally:
        _registry.swap(standing)
