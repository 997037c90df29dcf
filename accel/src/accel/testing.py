"""A fake backend, for tests of plugins and of code that uses accel.

    from accel import testing

    def test_mine():
        with testing.installed(testing.fake_backend("fake", rank=5)):
            assert accel.get_accelerator().name == "fake"

:func:`installed` replaces everything that is installed by the given plugins for its body.
:func:`fake_backend` makes a plugin; its accelerator is real and computes on the host's tensors,
its builder's kernels are the functions given, recorded call by call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from accel import plugins, selection
from accel import registry as _registry
from accel.accelerator import Accelerator
from accel.contracts import CONTRACTS
from accel.hookspecs import API, Backend, hookimpl
from accel.host import HOST as HOST
from accel.op_builder import Impl, OpBuilder, Request
from accel.refusal import Refusal
from accel.registry import Registry


class FakeAccelerator(Accelerator):
    """A synchronous device that is the host under another name. Everything works that needs no
    device module; the rest is refused with a reason, as by any accelerator."""

    indexed = False

    def is_synchronized_device(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device_index: int) -> None:
        if device_index != 0:
            raise ValueError(f"{self.name!r} has the one device 0, not {device_index}")

    def is_bf16_supported(self) -> bool:
        return True


class Calls(list[tuple[str, tuple[Any, ...]]]):
    """The calls fake kernels got: (op, arguments)."""


def fake_kernel(op: str, calls: Calls | None = None) -> Callable[..., torch.Tensor]:
    """The op's reference as a kernel that writes its calls down."""

    def kernel(*args: Any) -> torch.Tensor:
        if calls is not None:
            calls.append((op, args))
        return CONTRACTS[op].reference(*args)  # type: ignore[no-any-return]

    return kernel


def fake_builder(
    kernels: Mapping[str, Callable[..., Any]],
    *,
    id: str = "fake.kernel",
    family: str = "LinearBuilder",
    device_type: str = HOST,
    priority: int = 1000,
    reasons: Callable[[Impl, Request], list[Refusal]] | None = None,
    **impl: Any,
) -> type[OpBuilder]:
    """A builder class for ``kernels`` (op -> function); ``impl`` goes to each :class:`Impl`."""
    settings = {"dtypes": frozenset({torch.float32}), "shape_invariant": True, **impl}

    def load(self: OpBuilder, impl: Impl) -> Callable[..., Any]:
        return kernels[impl.op]

    def asked(self: OpBuilder, impl: Impl, request: Request) -> list[Refusal]:
        return reasons(impl, request) if reasons else []

    body = {
        "device_type": device_type,
        "impls": tuple(Impl(op, id, priority=priority, **settings) for op in kernels),
        "load": load,
        "reasons": asked,
    }
    return type(family, (OpBuilder,), body)


def fake_backend(
    name: str = "fake",
    *,
    rank: int = 1,
    refusals: Sequence[Refusal] = (),
    builders: Sequence[type[OpBuilder]] = (),
    accelerator: str = "accel.testing:FakeAccelerator",
    api: str = ".".join(map(str, API)),
    **backend: Any,
) -> Any:
    """A plugin object; ``refusals`` make its device unavailable, ``backend`` overrides fields of
    :class:`accel.Backend`."""
    fields = {
        "vendor": "accel.testing", "device_type": HOST, "version": "0", "rank": rank,
        "probe": lambda: list(refusals), "accelerator": accelerator, **backend,
    }  # fmt: skip

    @hookimpl
    def accel_backend() -> Backend:
        return Backend(name=name, **fields)

    @hookimpl
    def accel_op_builders() -> list[type[OpBuilder]]:
        return list(builders)

    plugin: Any = ModuleType(name)
    plugin.ACCEL_API = api
    plugin.accel_backend = accel_backend
    plugin.accel_op_builders = accel_op_builders
    return plugin


@contextmanager
def installed(*plugin_objects: Any) -> Iterator[Registry]:
    """Only these plugins are installed in the body; choices made before are set aside."""
    chosen = selection._process_wide
    old = _registry.swap(Registry(plugins.from_objects(plugin_objects)))
    selection.set_accelerator(None)
    try:
        yield _registry.registry()
    finally:
        _registry.swap(old)
        selection.set_accelerator(chosen)
