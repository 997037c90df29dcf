"""Accelerator: what a backend's device is asked, with defaults over torch's module for it.

A new torch device overrides what its module does not answer, usually some 30 lines.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from accel.accelerator.graphs import Graphs
from accel.accelerator.memory import Memory
from accel.accelerator.rng import Rng
from accel.accelerator.streams import Streams
from accel.errors import UnsupportedCapability
from accel.refusal import Refusal

if TYPE_CHECKING:
    from accel.bench.offers import Ceiling
    from accel.hookspecs import Backend
    from accel.op_builder import OpBuilder


@dataclass(frozen=True)
class DeviceProperties:
    """Facts about one device. ``details`` holds what only this kind of device has."""

    name: str
    total_memory: int
    compute_units: int
    details: dict[str, object] = field(default_factory=dict)


class Accelerator(Streams, Memory, Rng, Graphs):
    """One backend's device. Made by the registry from the plugin's :class:`accel.Backend`.

    Indices are ints, sizes bytes, times milliseconds, devices :class:`torch.device`.
    """

    # False where torch's tensors of this type carry no device index.
    indexed = True
    # The variable that limits which devices a process sees, where there is one.
    visible_devices_variable: str | None = None

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name = backend.name
        self.device_type = backend.device_type
        self._compile_backend = "inductor"
        self._open_ranges: list[torch.autograd.profiler.record_function] = []

    def __repr__(self) -> str:
        # Says only what is known without starting the device.
        return (
            f"<{type(self).__name__} {self.name!r}: torch device type {self.device_type!r}, "
            f"{self.backend.vendor}, plugin {self.backend.version}>"
        )

    # -- devices ---------------------------------------------------------------------------

    def is_available(self) -> bool:
        """True if the backend's probe finds its device now."""
        return not self.backend.probe()

    def device_count(self) -> int:
        """How many devices of this type the process sees."""
        return int(self._ask("device_count"))

    def device_name(self, device_index: int | None = None) -> str:
        """``"type"``, or ``"type:index"`` for an index, as ``torch.device`` reads it."""
        if device_index is None or not self.indexed:
            return self.device_type
        return f"{self.device_type}:{device_index}"

    def device(self, device_index: int | None = None) -> torch.device:
        """The device of an index (default: the current one), as its tensors report it."""
        if not self.indexed:
            return torch.device(self.device_type)
        index = self.current_device() if device_index is None else device_index
        return torch.device(self.device_type, index)

    def set_device(self, device_index: int) -> None:
        """Make an index the current device."""
        self._ask("set_device", device_index)

    def current_device(self) -> int:
        """The current device's index."""
        return int(self._ask("current_device"))

    def current_device_name(self) -> str:
        """The name of :meth:`device` for the current index."""
        return self.device_name(self.current_device())

    def on_accelerator(self, tensor: torch.Tensor) -> bool:
        """True if the tensor lies on a device of this type."""
        return tensor.device.type == self.device_type

    def properties(self, device_index: int | None = None) -> DeviceProperties:
        """Name, memory, compute units and further facts of a device."""
        facts = self._ask("get_device_properties", device_index)
        known = ("multi_processor_count", "max_compute_units")
        units = next((int(getattr(facts, name)) for name in known if hasattr(facts, name)), 0)
        return DeviceProperties(str(facts.name), int(facts.total_memory), units)

    # -- dtypes ----------------------------------------------------------------------------

    def is_bf16_supported(self) -> bool:
        """True if the device computes in bfloat16."""
        return bool(self._ask("is_bf16_supported"))

    def is_fp16_supported(self) -> bool:
        """True if the device computes in float16."""
        return True

    def supported_dtypes(self) -> list[torch.dtype]:
        """The floating point dtypes the device computes in, float32 first."""
        dtypes = [torch.float32]
        if self.is_fp16_supported():
            dtypes.append(torch.float16)
        if self.is_bf16_supported():
            dtypes.append(torch.bfloat16)
        if self.supports("fp64"):
            dtypes.append(torch.float64)
        return dtypes

    # -- profiling, distribution, compilation ------------------------------------------------

    def range_push(self, msg: str, domain: str | None = None, category: str | None = None) -> None:
        """Open a named range in the profiler's timeline."""
        opened = torch.autograd.profiler.record_function(msg)
        opened.__enter__()
        self._open_ranges.append(opened)

    def range_pop(self, domain: str | None = None) -> None:
        """Close the range opened last."""
        if not self._open_ranges:
            raise RuntimeError("range_pop() without a range_push() before it")
        self._open_ranges.pop().__exit__(None, None, None)

    def communication_backend_name(self) -> str:
        """The ``torch.distributed`` backend for this device."""
        self.require("collectives")
        return torch.distributed.get_default_backend_for_device(self.device_type)

    def communication_backend_version(self) -> tuple[int, ...]:
        """The version of its library; UnsupportedCapability where torch does not tell."""
        name = self.communication_backend_name()
        raise UnsupportedCapability(f"{self.name!r}: torch does not tell the version of {name!r}")

    def refusal(self, capability: str) -> Refusal | None:
        if capability == "collectives":
            return _collectives_refusal(self.device_type)
        if capability == "visible_devices" and self.visible_devices_variable:
            return None
        return super().refusal(capability)

    def is_triton_supported(self) -> bool:
        """True if Triton kernels run on the device."""
        return self.supports("triton")

    def prefer_triton_grouped_mm(self) -> bool:
        """True if a Triton grouped matrix product is the better choice on the device."""
        return False

    def get_compile_backend(self) -> str:
        """The ``torch.compile`` backend to use for this device."""
        return self._compile_backend

    def set_compile_backend(self, backend: str) -> None:
        """Choose the ``torch.compile`` backend; ValueError if torch does not know it."""
        known = torch._dynamo.list_backends(exclude_tags=())
        if backend not in known:
            raise ValueError(f"unknown compile backend {backend!r}; known: {', '.join(known)}")
        self._compile_backend = backend

    def ceilings(self, dtypes: Sequence[torch.dtype]) -> Sequence[Ceiling]:
        """What the device was just measured to do at most by means of its own, for ``accel bench``,
        which measures torch's operations itself; nothing by default."""
        return ()

    # -- environment -------------------------------------------------------------------------

    def export_envs(self) -> list[str]:
        """Prefixes of the environment variables a launcher must pass on."""
        return []

    def visible_devices_envs(self) -> list[str]:
        """The environment variables that limit which devices a process sees."""
        self.require("visible_devices")
        return [str(self.visible_devices_variable)]

    def set_visible_devices_envs(
        self, current_env: MutableMapping[str, str], local_accelerator_ids: Sequence[int]
    ) -> None:
        """Write them into an environment for a process that may see ``local_accelerator_ids``."""
        for variable in self.visible_devices_envs():
            current_env[variable] = ",".join(map(str, local_accelerator_ids))

    # -- ahead of time -------------------------------------------------------------------------

    def needs_build(self) -> bool:
        """True if a first use of the accelerator itself would have to compile something."""
        return False

    def build(self) -> None:
        """Compile it ahead of time; nothing by default."""

    # -- ops -----------------------------------------------------------------------------------

    def get_op_builder(self, class_name: str) -> type[OpBuilder]:
        """The class that builds a family of ops here: ``"LinearBuilder"`` and so on.

        The backend's own, or the one over eager torch where it brings none. UnknownOpError for
        a name that is no family.
        """
        return type(self.create_op_builder(class_name))

    def create_op_builder(self, class_name: str) -> OpBuilder:
        """The builder of a family of ops for this device; see :meth:`get_op_builder`."""
        from accel.ops import catalog

        return catalog.builder_for(self.name, class_name)


def _collectives_refusal(device_type: str) -> Refusal | None:
    want = "a torch.distributed backend for the device"
    if not torch.distributed.is_available():
        have = "a torch built without torch.distributed"
        return Refusal("collectives", want, have, "install a torch built with it")
    try:
        backend = torch.distributed.get_default_backend_for_device(device_type)
    except ValueError:
        remedy = "import the package that registers one"
        return Refusal("collectives", want, "none registered for it", remedy)
    if not torch.distributed.is_backend_available(backend):
        have = f"{backend!r} is the default and is not built in"
        return Refusal("collectives", want, have, "install a torch built with it")
    return None
