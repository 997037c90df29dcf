"""A right device that works later: what faults of the device layer are planted in.

It is the host's memory. There are two devices, each with memory figures and random numbers of its
own. Work in a stream is queued and runs when somebody waits for it; of work that nothing orders the
latest runs first, and fresh memory holds NaN, so that a missing wait shows every time. Outside
every stream, in the default one, work is done when its call returns. All this in the body of
:func:`present`.
"""

from __future__ import annotations

import sys
from types import ModuleType

from torch import Tensor

import accel
from accel.accelerator import DeviceProperties
from accel_conformance.faults.device import runtime
from accel_conformance.faults.device.dispatch import present

__all__ = ["SimulatedAccelerator", "present"]


class SimulatedAccelerator(accel.Accelerator):
    """As the devices are asked: by the defaults, of :mod:`runtime` in place of torch's module."""

    indexed = False
    visible_devices_variable = "SIMULATED_VISIBLE_DEVICES"

    @property
    def module(self) -> ModuleType:
        return sys.modules[runtime.__name__]

    def refusal(self, capability: str) -> accel.Refusal | None:
        if capability in ("graphs", "pinned_memory", "generator", "fp64"):
            return None
        return super().refusal(capability)

    def properties(self, device_index: int | None = None) -> DeviceProperties:
        return DeviceProperties("simulated", runtime.TOTAL, compute_units=1)

    def is_bf16_supported(self) -> bool:
        return True

    def _graph_api(self) -> tuple[type[runtime.Graph], object]:
        return runtime.Graph, runtime.capture

    def pin_memory(self, tensor: Tensor) -> Tensor:
        if self.is_pinned(tensor):
            return tensor
        pinned = tensor.clone()
        pinned.page_locked = True  # type: ignore[attr-defined]
        return pinned

    def is_pinned(self, tensor: Tensor) -> bool:
        return getattr(tensor, "page_locked", False)
