"""The builders that backends subclass to have the Triton kernels on their device::

    class LinearBuilder(TritonLinearBuilder):
        device_type = "mychip"
        impls = triton_impls("accel_mychip", "LinearBuilder")

        def tuning(self):
            return MYCHIP

triton itself is imported when a kernel is loaded, not before.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any, ClassVar

import torch

from accel.contracts import CONTRACTS
from accel.op_builder import Impl, Kernel, OpBuilder, Request
from accel.refusal import Refusal
from accel.triton_kernels import BACKWARDS, FORWARDS, INTO, KERNELS
from accel.triton_kernels.limits import head_refusals
from accel.triton_kernels.tuning import Tuning

PACKAGE = "accel.triton_kernels"
_COMPUTED = frozenset({torch.float32, torch.bfloat16, torch.float16})


def triton_impls(package: str, family: str, priority: int = 100) -> tuple[Impl, ...]:
    """``package.triton`` for every op of a family that has a kernel here."""
    return tuple(
        Impl(op, f"{package}.triton", _COMPUTED, priority, shape_invariant=True)
        for op in KERNELS
        if CONTRACTS[op].family == family
    )


def kernel(op: str, tuning: Tuning, package: str = PACKAGE) -> Kernel:
    """An op's launch function, and what else it can do, with the tuning."""
    run, forward, into, backward = (
        _found(table, op, tuning, package) for table in (KERNELS, FORWARDS, INTO, BACKWARDS)
    )
    assert run is not None
    return Kernel(run, forward, into, backward)


def _found(
    table: Mapping[str, str], op: str, tuning: Tuning, package: str
) -> Callable[..., Any] | None:
    if op not in table:
        return None
    module, _, name = table[op].partition(":")
    return partial(getattr(import_module(f"{package}.{module}"), name), tuning)


class TritonBuilder(OpBuilder):
    """What the three families share. ``kernels`` is the package whose modules hold the kernels;
    ``beside`` has torch's own by the ids of implementations: a module with a ``KERNEL`` and
    ``reasons`` against it, as :mod:`accel.torch_impls.sdpa` is."""

    kernels = PACKAGE
    beside: ClassVar[Mapping[str, Any]] = {}

    def tuning(self) -> Tuning:
        """Of the current device; asked when a kernel is loaded."""
        raise NotImplementedError(f"{type(self).__name__} has no tuning")

    def compiler_refusals(self) -> list[Refusal]:
        """Why Triton cannot compile for the device; empty if it can."""
        found = importlib.util.find_spec("triton")
        if found is None or found.origin is None:
            have, remedy = "none installed", "install the triton that torch asks for"
            return [Refusal("triton", "Triton", have, remedy)]
        return []

    def reasons(self, impl: Impl, request: Request) -> list[Refusal]:
        if impl.id in self.beside:
            return list(self.beside[impl.id].reasons(request))
        out = request.options.get("out_dtype")
        if out is not None and out not in _COMPUTED:
            have = str(out).removeprefix("torch.")
            want = "float32, bfloat16 or float16"
            return [Refusal("out_dtype", want, have, "cast the result, or let eager torch serve")]
        return self.compiler_refusals()

    def load(self, impl: Impl) -> Callable[..., Any]:
        if impl.id in self.beside:
            return self.beside[impl.id].KERNEL  # type: ignore[no-any-return]
        return kernel(impl.op, self.tuning(), self.kernels)


class TritonLinearBuilder(TritonBuilder):
    """Products with a weight."""


class TritonTransformerBuilder(TritonBuilder):
    """What goes row by row, attention, and the layer made of them."""

    def reasons(self, impl: Impl, request: Request) -> list[Refusal]:
        refused = super().reasons(impl, request)
        return refused if impl.id in self.beside else refused + head_refusals(request)


class TritonTilingBuilder(TritonBuilder):
    """Products over tiles."""
