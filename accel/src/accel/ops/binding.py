"""Binding: from a request to a loaded kernel, ready to be called in each of torch's situations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch._ops import OpOverload

from accel.contracts import CONTRACTS
from accel.errors import (
    BuildError,
    CacheError,
    FallbackWarning,
    OpResolutionError,
    VarianceWarning,
)
from accel.op_builder import Impl, Kernel, Request
from accel.ops import gradient
from accel.ops.catalog import Entry
from accel.ops.policy import Policy
from accel.ops.resolution import Decision, decide, unserved
from accel.ops.torch_op import torch_op
from accel.refusal import Refusal
from accel.registry import Registry

# Loading may compile and defines torch ops: one thread at a time.
_loading = threading.RLock()


@dataclass(frozen=True)
class Binding:
    """An implementation ready to serve.

    ``kernel``     what the builder loaded: plain tensors, nothing recorded
    ``into``       the same that writes to a place, if the kernel can
    ``backward``   a gradient of its own made of the arguments alone, if the kernel has one
    ``record``     the kernel and its options, recorded by autograd: plain tensors, no functorch
    ``transform``  the op under functorch
    ``op``         the torch op: everything that watches (modes, subclasses, tracing)
    """

    decision: Decision
    kernel: Callable[..., Any]
    into: Callable[..., Any] | None
    backward: Callable[..., Any] | None
    record: Callable[..., Any]
    transform: Callable[..., Any]
    op: OpOverload

    @property
    def impl(self) -> Impl:
        assert self.decision.chosen is not None
        return self.decision.chosen.impl


def bind(request: Request, policy: Policy, options: tuple[Any, ...]) -> Binding:
    """Resolve, load and wrap; what cannot be loaded is refused and the next one asked.

    ``options`` are the values of the arguments that are no tensors, in the schema's order.
    """
    registry = policy.registry
    assert registry is not None
    with _loading:
        while True:
            decision = decide(request, policy, registry.load_failures)
            entry = decision.chosen
            if entry is None:
                raise unserved(decision, policy.order(request.op))
            try:
                kernel = _load(entry)
                break
            except Exception as error:
                registry.load_failures[entry.impl] = _failure(error)
        _speak(decision, policy, registry)
        if decision.fallback:
            kernel = _counted(kernel, registry, (request.op, entry.impl.id))
        return _wrap(decision, entry.impl, kernel, options)


def _load(entry: Entry) -> Kernel:
    kernel = entry.builder.load(entry.impl)
    if not callable(kernel):
        raise TypeError(f"{type(entry.builder).__name__}.load({entry.impl}) gave {kernel!r:.120}")
    return kernel if isinstance(kernel, Kernel) else Kernel(kernel)


def _failure(error: Exception) -> Refusal:
    code = (
        "cache" if isinstance(error, CacheError)
        else "build" if isinstance(error, BuildError)
        else "load"
    )  # fmt: skip
    have = f"{type(error).__name__}: {error}"
    return Refusal(code, "a kernel that loads", have, "mend that, and start the process again")


def _speak(decision: Decision, policy: Policy, registry: Registry) -> None:
    """Say once what the user did not ask for; or raise, if the policy says so."""
    assert decision.chosen is not None
    op, impl = decision.request.op, decision.chosen.impl
    device = decision.request.device.type
    if decision.fallback and policy.fallback == "error":
        raise OpResolutionError(
            f"{op} on {device} would be served by {impl.id}, a fallback: {decision.fallback}; "
            f"ACCEL_FALLBACK=error forbids it:\n{decision}"
        )
    if decision.fallback and policy.fallback == "warn":
        registry.warn_once(
            ("fallback", op, impl.id, device),
            f"{op} on {device} is served by {impl.id}: {decision.fallback}",
            FallbackWarning,
        )
    if decision.varies and device != "meta":  # where no rows are computed
        registry.warn_once(
            ("varies", op, impl.id, device),
            f"{op} on {device} is served by {impl.id}, whose rows depend on how many stand "
            "beside them; accel.ops.use(exact=False) permits that, accel.ops.explain shows "
            "what else there is",
            VarianceWarning,
        )


def _counted(kernel: Kernel, registry: Registry, key: tuple[str, str]) -> Kernel:
    def counting(function: Callable[..., Any] | None) -> Any:
        if function is None:
            return None

        def counted(*args: Any) -> Any:
            registry.fallbacks[key] += 1
            return function(*args)

        return counted

    run, forward, into = map(counting, (kernel.run, kernel.forward, kernel.into))
    return Kernel(run, forward, into, kernel.backward)


def _wrap(decision: Decision, impl: Impl, kernel: Kernel, options: tuple[Any, ...]) -> Binding:
    contract = CONTRACTS[impl.op]
    op = torch_op(contract, impl, kernel.run)
    return Binding(
        decision,
        kernel=kernel.run,
        into=kernel.into,
        backward=kernel.backward,
        record=gradient.recorder(contract, kernel, options),
        transform=gradient.transformer(contract, op),
        op=op,
    )
