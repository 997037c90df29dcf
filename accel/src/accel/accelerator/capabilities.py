"""The abilities a device may lack: asked for by name, refused with the reason.

Using a missing one raises; nothing returns None or does nothing in its place.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from accel.errors import UnsupportedCapability, close_matches
from accel.refusal import Refusal

# name -> (what it means, the functions of the torch device module it rests on)
CAPABILITIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "streams": ("queues of work that run beside each other",
                ("Stream", "stream", "current_stream")),
    "events": ("marks in a stream that others can wait for", ("Event",)),
    "event_timing": ("milliseconds between two events", ("Event",)),
    "graphs": ("capture work once and replay it", ()),
    "memory_stats": ("bytes allocated and reserved now", ("memory_allocated", "memory_reserved")),
    "peak_memory_stats": ("their highest values, and a reset",
                          ("max_memory_allocated", "reset_peak_memory_stats")),
    "memory_info": ("total and free bytes of the device", ("mem_get_info",)),
    "pinned_memory": ("page-locked host memory for asynchronous copies", ()),
    "rng_state": ("a random number state of its own, read and written",
                  ("get_rng_state", "set_rng_state", "manual_seed")),
    "generator": ("torch.Generator objects on the device", ()),
    "collectives": ("a torch.distributed backend for the device", ()),
    "visible_devices": ("an environment variable that limits which devices a process sees", ()),
    "fp64": ("float64 arithmetic", ()),
    "triton": ("Triton kernels", ()),
}  # fmt: skip


class Capable:
    """The part of an accelerator that knows what it can do."""

    name: str
    device_type: str

    @property
    def module(self) -> ModuleType:
        """The torch module of this device type, as ``torch.get_device_module`` finds it."""
        return torch.get_device_module(self.device_type)  # type: ignore[no-any-return]

    def refusal(self, capability: str) -> Refusal | None:
        """Why the device lacks a capability; None if it has it.

        The default looks for the functions the capability rests on in the torch device module;
        subclasses that know better override it and pass everything else on.
        """
        meaning, functions = _known(capability)
        absent = [f for f in functions if not hasattr(self.module, f)]
        if functions and not absent:
            return None
        have = f"none offered by {type(self).__name__}"
        if absent:
            have = f"no {absent[0]} in {self.module.__name__}"
        remedy = f"ask supports({capability!r}) first, and do without"
        return Refusal(capability, meaning, have, remedy)

    @property
    def capabilities(self) -> frozenset[str]:
        """The names out of :data:`CAPABILITIES` that this device has."""
        return frozenset(c for c in CAPABILITIES if self.refusal(c) is None)

    def supports(self, capability: str) -> bool:
        return self.refusal(capability) is None

    def require(self, capability: str) -> None:
        """Raise UnsupportedCapability with the reason if the device lacks ``capability``."""
        refused = self.refusal(capability)
        if refused is not None:
            raise UnsupportedCapability(f"{self.name!r} has no {capability}: {refused}")

    def _ask(self, function: str, *args: Any, capability: str | None = None) -> Any:
        """Call the device module's function; ``torch.accelerator``'s only where it has none."""
        if capability is not None:
            self.require(capability)
        found = getattr(self.module, function, None)
        if found is None and _is_torch_accelerator(self.device_type):
            found = getattr(torch.accelerator, function, None)
        if found is None:
            raise UnsupportedCapability(
                f"{self.name!r} cannot {function}: neither {self.module.__name__} nor "
                f"torch.accelerator (torch {torch.__version__}) offers it for this device"
            )
        return found(*args)


def _known(capability: str) -> tuple[str, tuple[str, ...]]:
    if capability not in CAPABILITIES:
        raise ValueError(
            f"unknown capability {capability!r}; {close_matches(capability, CAPABILITIES)}"
        )
    return CAPABILITIES[capability]


def _is_torch_accelerator(device_type: str) -> bool:
    current = torch.accelerator.current_accelerator()
    return current is not None and current.type == device_type
