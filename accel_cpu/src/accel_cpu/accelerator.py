"""CpuAccelerator: the host processor as accel's device."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch

from accel import Accelerator, Backend, Ceiling, DeviceProperties, Refusal
from accel.errors import UnsupportedCapability
from accel_cpu import ceilings, graphs, host_memory, processor
from accel_cpu.memory_counter import COUNTER, NOT_SEEN

# Offered by torch's host generator and by the processor itself.
_HAS = {"rng_state", "generator", "fp64"}

_LACKS = {
    "triton": Refusal(
        "triton",
        "a device Triton compiles for",
        "the host processor",
        "torch.compile makes C++ here",
    ),
    "visible_devices": Refusal(
        "visible_devices",
        "several devices to choose from",
        "one, the host processor",
        "limit its cores with taskset or numactl instead",
    ),
}

_NO_MEMORY_INFO = Refusal(
    "memory_info",
    "a system that tells how much memory is free",
    f"{sys.platform}, which does not tell accel",
    "properties() has the total",
)


class CpuAccelerator(Accelerator):
    """One device, number 0, whose operations have finished when their calls return.

    Memory figures are exact once allocations are counted: from here on if the counter's library
    is in the build cache, else from the first use of a figure, which compiles it and warns.
    """

    indexed = False
    captures_run = True

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        COUNTER.start_if_built()

    def refusal(self, capability: str) -> Refusal | None:
        if capability in _HAS:
            return None
        if capability in _LACKS:
            return _LACKS[capability]
        if capability == "graphs":
            missing = graphs.LIBRARY.refusals()
            return missing[0] if missing else None
        if capability in ("memory_stats", "peak_memory_stats"):
            return COUNTER.refusal()
        if capability == "memory_info":
            return None if host_memory.free_and_total() else _NO_MEMORY_INFO
        if capability == "pinned_memory":
            return _pinning_refusal()
        return super().refusal(capability)

    def is_synchronized_device(self) -> bool:
        return True

    # -- the device --------------------------------------------------------------------------

    def device_count(self) -> int:
        """1: cores are not devices."""
        return 1

    def current_device(self) -> int:
        """0, the only one."""
        return 0

    def set_device(self, device_index: int) -> None:
        """Accept 0; ValueError for any other."""
        self._check(device_index)

    def properties(self, device_index: int | None = None) -> DeviceProperties:
        """The processor; compute units are the logical cores this process may use.

        ``details`` are described in :func:`accel_cpu.processor.details`.
        """
        self._check(device_index)
        total = host_memory.total()
        if total is None:
            raise UnsupportedCapability("this system does not tell how much memory it has")
        units = processor.usable_cores()
        return DeviceProperties(processor.name(), total, units, processor.details())

    def is_bf16_supported(self) -> bool:
        """True: torch computes in it everywhere, slowly where the processor does not."""
        return True

    def is_fp16_supported(self) -> bool:
        """True: torch computes in it everywhere, slowly where the processor does not."""
        return True

    # -- graphs ------------------------------------------------------------------------------

    def _graph_api(self) -> tuple[type[Any], Any]:
        self.require("graphs")
        return graphs.Graph, graphs.capture

    # -- random numbers: torch's host generator ----------------------------------------------

    def manual_seed(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.default_generator.manual_seed(seed)

    def initial_seed(self) -> int:
        return torch.default_generator.initial_seed()

    def get_rng_state(self, device_index: int | None = None) -> torch.Tensor:
        return self.default_generator(device_index).get_state()

    def set_rng_state(self, new_state: torch.Tensor, device_index: int | None = None) -> None:
        self.default_generator(device_index).set_state(new_state)

    def default_generator(self, device_index: int | None = None) -> torch.Generator:
        self._check(device_index)
        return torch.default_generator

    # -- memory ------------------------------------------------------------------------------

    def memory_allocated(self, device_index: int | None = None) -> int:
        """Bytes held by live tensors, the C library's rounding included.

        Not seen are: numpy's own memory, tensors moved by ``share_memory_()``, scratch memory
        inside oneDNN and MKL, and tensors made before counting started.
        """
        self._check(device_index)
        return COUNTER.read()[0].current

    def max_memory_allocated(self, device_index: int | None = None) -> int:
        self._check(device_index)
        return COUNTER.read()[0].peak

    def memory_reserved(self, device_index: int | None = None) -> int:
        """The same as :meth:`memory_allocated`: what the C library keeps for reuse it keeps for
        the whole process, and gives no figure of what is there for tensors."""
        self._check(device_index)
        return COUNTER.read()[0].current

    def max_memory_reserved(self, device_index: int | None = None) -> int:
        """The same as :meth:`max_memory_allocated`, as with :meth:`memory_reserved`."""
        self._check(device_index)
        return COUNTER.read()[0].peak

    def reset_peak_memory_stats(self, device_index: int | None = None) -> None:
        self._check(device_index)
        COUNTER.reset_peak()

    def memory_stats(self, device_index: int | None = None) -> dict[str, Any]:
        """Counters under torch's names, with two sentences on what they mean here.

        ``allocated_bytes.all.*`` and ``reserved_bytes.all.*`` in bytes, ``allocation.all.*`` in
        blocks; ``not_seen`` and ``reserved_means`` are text.
        """
        self._check(device_index)
        held, blocks = COUNTER.read()
        return {
            **held.as_stats("allocated_bytes"),
            **held.as_stats("reserved_bytes"),
            **blocks.as_stats("allocation"),
            "reserved_means": "equal to allocated_bytes: the C library does not tell what it keeps",
            "not_seen": NOT_SEEN,
        }

    def _memory_info(self, device_index: int | None) -> tuple[int, int]:
        """(free without swapping, total) bytes, within the limits of the control groups."""
        self._check(device_index)
        known = host_memory.free_and_total()
        if known is None:
            raise UnsupportedCapability(f"{self.name!r} has no memory_info: {_NO_MEMORY_INFO}")
        return known

    def empty_cache(self) -> None:
        """Have the C library give its free memory back to the system.

        torch caches no host memory. UnsupportedCapability where the C library has no such call.
        """
        host_memory.give_back()

    def pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """Page-locked by the driver of whatever accelerator torch was built for, if there is one;
        else UnsupportedCapability."""
        self.require("pinned_memory")
        try:
            return tensor.pin_memory()
        except RuntimeError as error:
            raise UnsupportedCapability(f"torch cannot pin memory here: {error}") from error

    def ceilings(self, dtypes: Sequence[torch.dtype]) -> Sequence[Ceiling]:
        """Memory read and multiply-adds, by loops in C++ that do nothing else."""
        return tuple(ceilings.measure(dtypes))

    # -- ahead of time -----------------------------------------------------------------------

    def needs_build(self) -> bool:
        """True if the first use of a memory figure or of a graph would compile."""
        return not (COUNTER.library.is_built() and graphs.LIBRARY.is_built())

    def build(self) -> None:
        """Compile the memory counter, so that the next process counts from the start, and what
        records graphs."""
        COUNTER.library.build()
        graphs.LIBRARY.build()

    def _check(self, device_index: int | None) -> None:
        if device_index not in (None, 0):
            raise ValueError(f"{self.name!r} has the one device 0, not {device_index!r}")


def _pinning_refusal() -> Refusal | None:
    """torch pins host memory through the accelerator it was built for, or not at all."""
    device = torch.accelerator.current_accelerator()
    if device is not None:
        module = torch.get_device_module(device)
        started = getattr(module, "is_initialized", lambda: True)()
        if not started and module.device_count() > 0:
            return None  # trying would make a device context only to answer a question
    try:
        torch.empty(1, pin_memory=True)
    except RuntimeError as error:
        want = "a driver that locks pages for torch"
        have = f"torch's answer: {error}".splitlines()[0]
        return Refusal("pinned_memory", want, have, "leave it pageable; only a device would gain")
    return None
