"""CudaAccelerator: what torch.cuda drives, NVIDIA GPUs and (through ROCm) AMD's."""

from __future__ import annotations

import importlib.util
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from accel import Accelerator, Backend, DeviceProperties, Refusal
from accel.errors import UnsupportedCapability
from accel_cuda import nvml
from accel_cuda.compiler import triton_refusal

# Every GPU that torch.cuda drives has these.
_HAS = {"graphs", "pinned_memory", "generator", "fp64"}


class CudaAccelerator(Accelerator):
    """Asking what a GPU is or can do starts it in this process; counting GPUs does not."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend)
        self.visible_devices_variable = (
            "HIP_VISIBLE_DEVICES" if torch.version.hip else "CUDA_VISIBLE_DEVICES"
        )

    def refusal(self, capability: str) -> Refusal | None:
        if capability in _HAS:
            return None
        if capability == "triton":
            return triton_refusal()
        return super().refusal(capability)

    # -- devices -----------------------------------------------------------------------------

    def properties(self, device_index: int | None = None) -> DeviceProperties:
        """The GPU; compute units are its multiprocessors.

        ``details``: ``capability`` (major, minor) or, on AMD, ``architecture``; ``uuid``;
        ``driver`` version; ``mig``, the profile of a part of a GPU such as ``"1g.10gb"``, else
        None; ``integrated``; ``l2_cache`` in bytes.
        """
        facts = torch.cuda.get_device_properties(device_index)
        details: dict[str, object] = {
            "uuid": str(facts.uuid),
            "driver": _driver(),
            "mig": facts.name.partition(" MIG ")[2] or None,
            "integrated": bool(facts.is_integrated),
            "l2_cache": facts.L2_cache_size,
        }
        if torch.version.hip:
            details["architecture"] = facts.gcnArchName
        else:
            details["capability"] = (facts.major, facts.minor)
        units = facts.multi_processor_count
        return DeviceProperties(facts.name, facts.total_memory, units, details)

    # -- dtypes and compilers ----------------------------------------------------------------

    def is_bf16_supported(self) -> bool:
        """True if the current GPU has instructions for it; torch's emulation does not count."""
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    def is_fp16_supported(self) -> bool:
        """True if the current GPU has instructions for it."""
        return bool(torch.version.hip or torch.cuda.get_device_capability() >= (5, 3))

    def communication_backend_version(self) -> tuple[int, ...]:
        """NCCL's, on AMD RCCL's."""
        self.require("collectives")
        return torch.cuda.nccl.version()

    # -- work --------------------------------------------------------------------------------

    def _graph_api(self) -> tuple[type[Any], Any]:
        return torch.cuda.CUDAGraph, torch.cuda.graph

    def capture_to_graph(
        self, graph: Any, pool: Any = None, stream: Any = None
    ) -> AbstractContextManager[Any]:
        """As everywhere; on a stream of the current device, where torch's own is of the one that
        was current at the first capture. What other threads do meanwhile (a loader pins memory)
        does not end it."""
        if stream is None:
            stream = _side_stream(torch.cuda.current_device())
        return torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")

    def default_generator(self, device_index: int | None = None) -> torch.Generator:
        torch.cuda.init()  # which makes the generators
        return super().default_generator(device_index)

    def range_push(self, msg: str, domain: str | None = None, category: str | None = None) -> None:
        """Open an NVTX range. Domains are NVTX's own if the package ``nvtx`` is installed;
        otherwise domain and category stand before the message."""
        package = _nvtx_package()
        if domain and package:
            package.push_range(msg, domain=domain, category=category)
        else:
            torch.cuda.nvtx.range_push(": ".join(filter(None, (domain, category, msg))))

    def range_pop(self, domain: str | None = None) -> None:
        """Close the NVTX range opened last (in ``domain``, as it was given when opening)."""
        package = _nvtx_package()
        if domain and package:
            package.pop_range(domain=domain)
        else:
            torch.cuda.nvtx.range_pop()

    # -- memory and environment --------------------------------------------------------------

    def _memory_info(self, device_index: int | None) -> tuple[int, int]:
        if device_index is not None and not 0 <= device_index < self.device_count():
            raise ValueError(f"there are {self.device_count()} GPUs, and no number {device_index}")
        try:
            return torch.cuda.mem_get_info(device_index)
        except RuntimeError as error:  # a question must not end a run, however unwell the GPU is
            raise UnsupportedCapability(
                f"{self.name!r} cannot tell its free memory: {error}"
            ) from error

    def export_envs(self) -> list[str]:
        """Those of the collectives, and on AMD of its runtime."""
        return ["NCCL", "TORCH_NCCL", *(["RCCL", "HSA"] if torch.version.hip else [])]


@cache
def _side_stream(device_index: int) -> Any:
    """To record graphs on."""
    return torch.cuda.Stream(device_index)


def _driver() -> str:
    """The driver's version, or ``"unknown"``."""
    if torch.version.hip:
        module = Path("/sys/module/amdgpu/version")  # absent for the driver in the kernel's tree
        return module.read_text().strip() if module.exists() else "unknown"
    try:
        return nvml.driver_version() or "unknown"
    except nvml.NvmlError as error:
        return f"unknown ({error})"


@cache
def _nvtx_package() -> ModuleType | None:
    """NVIDIA's Python package, which knows domains; torch's own ranges do not."""
    if torch.version.hip or importlib.util.find_spec("nvtx") is None:
        return None
    return importlib.import_module("nvtx")
