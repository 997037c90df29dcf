"""accel: run PyTorch code, fast and exactly, on whatever device a plugin supplies.

    acc = accel.get_accelerator()              # the device layer
    y = accel.ops.linear(x, w, b, act="silu")  # ops that resolve to the device's kernels
    print(accel.ops.explain("linear"))         # which one, and why

Importing accel prints nothing, starts nothing and touches no device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel import contracts, errors, ops, testing
    from accel.accelerator import CAPABILITIES, Accelerator, DeviceProperties
    from accel.bench.offers import Ceiling, Peer
    from accel.engine import HybridEngine, HybridEngineConfig, ModelPolicy, hybridize, plan, restore
    from accel.hookspecs import Backend, hookimpl
    from accel.native import NativeLibrary, NativeOpBuilder, Source
    from accel.op_builder import Impl, Kernel, Knob, OpBuilder, Request
    from accel.refusal import Refusal
    from accel.selection import get_accelerator, reset, set_accelerator, use_accelerator

__version__ = "0.1.0"

__all__ = [
    "CAPABILITIES",
    "Accelerator",
    "Backend",
    "Ceiling",
    "DeviceProperties",
    "HybridEngine",
    "HybridEngineConfig",
    "Impl",
    "Kernel",
    "Knob",
    "ModelPolicy",
    "NativeLibrary",
    "NativeOpBuilder",
    "OpBuilder",
    "Peer",
    "Refusal",
    "Request",
    "Source",
    "contracts",
    "errors",
    "get_accelerator",
    "hookimpl",
    "hybridize",
    "ops",
    "plan",
    "reset",
    "restore",
    "set_accelerator",
    "testing",
    "use_accelerator",
]

# name -> module it lives in; loaded when first asked for, so that importing accel stays cheap.
_HOMES = {
    "CAPABILITIES": "accelerator", "Accelerator": "accelerator", "DeviceProperties": "accelerator",
    "Ceiling": "bench.offers", "Peer": "bench.offers",
    "Backend": "hookspecs", "hookimpl": "hookspecs",
    "NativeLibrary": "native", "NativeOpBuilder": "native", "Source": "native",
    "HybridEngine": "engine", "HybridEngineConfig": "engine", "ModelPolicy": "engine",
    "hybridize": "engine", "plan": "engine", "restore": "engine",
    "Impl": "op_builder", "Kernel": "op_builder", "Knob": "op_builder",
    "OpBuilder": "op_builder", "Request": "op_builder",
    "Refusal": "refusal",
    "get_accelerator": "selection", "reset": "selection", "set_accelerator": "selection",
    "use_accelerator": "selection",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"accel.{_HOMES[name]}"), name)
    elif name in __all__:
        value = import_module(f"accel.{name}")
    else:
        raise AttributeError(f"module 'accel' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
