"""XpuAccelerator: Intel GPUs, through torch.xpu."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch

from accel import Accelerator, DeviceProperties, Refusal
from accel.errors import UnsupportedCapability
from accel_xpu.compiler import triton_refusal

# Every GPU that torch.xpu drives has these.
_HAS = {"pinned_memory", "generator"}


class XpuAccelerator(Accelerator):
    """Asking what a GPU is or can do starts it in this process."""

    visible_devices_variable = "ZE_AFFINITY_MASK"

    def refusal(self, capability: str) -> Refusal | None:
        if capability in _HAS:
            return None
        if capability == "graphs":
            return self._graphs_refusal()
        if capability == "triton":
            return triton_refusal()
        if capability == "fp64":
            return self._fp64_refusal()
        if capability == "memory_info":
            try:
                torch.xpu.mem_get_info()
            except RuntimeError as error:
                return _memory_info_refusal(error)
            return None
        return super().refusal(capability)

    # -- devices -----------------------------------------------------------------------------

    def properties(self, device_index: int | None = None) -> DeviceProperties:
        """The GPU; ``details`` are all further facts that torch tells, under torch's names
        (``driver_version``, ``gpu_eu_count``, ``has_fp64``, ...), and the ``uuid``."""
        index = self._index(device_index)
        facts = torch.xpu.get_device_properties(index)
        details: dict[str, object] = dict(torch.xpu.get_device_capability(index))
        details["uuid"] = str(getattr(facts, "uuid", "unknown"))
        units = facts.max_compute_units
        return DeviceProperties(facts.name, facts.total_memory, units, details)

    def _index(self, device_index: int | None) -> int:
        """An index that exists: the current device's for None; ValueError for a wrong one."""
        if device_index is None:
            return self.current_device()
        if not 0 <= device_index < self.device_count():
            raise ValueError(f"there are {self.device_count()} GPUs, and no number {device_index}")
        return device_index

    # -- dtypes and compilers ----------------------------------------------------------------

    def is_bf16_supported(self) -> bool:
        """True if the current GPU has instructions for it; torch's emulation does not count."""
        return torch.xpu.is_bf16_supported(including_emulation=False)

    def is_fp16_supported(self) -> bool:
        """True if the current GPU has instructions for it."""
        return bool(torch.xpu.get_device_properties().has_fp16)

    def _fp64_refusal(self) -> Refusal | None:
        facts = torch.xpu.get_device_properties()
        if facts.has_fp64:
            return None
        want = "a GPU with float64 instructions"
        return Refusal("fp64", want, f"{facts.name}, without", "compute in float32, or on the host")

    # -- work --------------------------------------------------------------------------------

    def default_stream(self, device_index: int | None = None) -> Any:
        """The stream that work goes to unless told otherwise.

        torch.xpu does not name it; it is the one that a new thread finds.
        """
        index = self._index(device_index)
        with ThreadPoolExecutor(1) as new_thread:
            return new_thread.submit(torch.xpu.current_stream, index).result()

    def _graphs_refusal(self) -> Refusal | None:
        if hasattr(torch.xpu, "XPUGraph"):
            return None
        have = f"torch {torch.__version__}, without"
        return Refusal("graphs", "torch.xpu.XPUGraph", have, "install torch 2.11 or later")

    def _graph_api(self) -> tuple[type[Any], Any]:
        self.require("graphs")
        return torch.xpu.XPUGraph, torch.xpu.graph

    def capture_to_graph(
        self, graph: Any, pool: Any = None, stream: Any = None
    ) -> AbstractContextManager[Any]:
        """As everywhere; on a stream of the current device, where torch's own is of the one that
        was current at the first capture."""
        self.require("graphs")
        if stream is None:
            stream = _side_stream(self.current_device())
        return super().capture_to_graph(graph, pool, stream)

    def default_generator(self, device_index: int | None = None) -> torch.Generator:
        torch.xpu.init()  # which makes the generators
        return super().default_generator(device_index)

    # -- memory and environment --------------------------------------------------------------

    def _memory_info(self, device_index: int | None) -> tuple[int, int]:
        index = self._index(device_index)
        try:
            return torch.xpu.mem_get_info(index)
        except RuntimeError as error:
            refused = _memory_info_refusal(error)
            raise UnsupportedCapability(f"{self.name!r} has no memory_info: {refused}") from error

    def export_envs(self) -> list[str]:
        """Those of the collectives and of what they run on."""
        return ["CCL", "FI_", "I_MPI"]


@cache
def _side_stream(device_index: int) -> Any:
    """To record graphs on."""
    return torch.xpu.Stream(device_index)


def _memory_info_refusal(error: RuntimeError) -> Refusal:
    """Integrated GPUs and WSL2 do not tell the free memory; torch raises when asked."""
    want = "a GPU and driver that tell the free memory"
    have = f"torch's answer: {str(error).splitlines()[0]}"
    return Refusal("memory_info", want, have, "properties() has the total")
