"""Promises of a device that are not kept: facts, types, abilities, what is pinned or profiled."""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from accel.accelerator import DeviceProperties
from accel.refusal import Refusal
from accel_conformance.faults.planting import Device, faults_of

fault = faults_of("contract")


@fault("types", "accelerator/indices_are_ints", also="works identity memory", role="accelerator")
def index_in_words(right: Device) -> Device:
    """The current device's index is text, as an environment variable has it."""

    class Faulty(right):
        def current_device(self) -> Any:
            return os.environ.get("LOCAL_RANK", "0")

    return Faulty


@fault("types", "accelerator/devices_are_what_tensors_report", also="works identity",
       role="accelerator")  # fmt: skip
def device_in_words(right: Device) -> Device:
    """A device is its name."""

    class Faulty(right):
        def device(self, device_index: int | None = None) -> Any:
            return str(super().device(device_index))

    return Faulty


@fault("identity", "accelerator/set_device_*", also="random memory independent",
       role="accelerator")  # fmt: skip
def any_index_will_do(right: Device) -> Device:
    """Another device is chosen without a word, and nothing happens."""

    class Faulty(right):
        def set_device(self, device_index: int) -> None:
            pass

    return Faulty


@fault("capability", "accelerator/capability/graphs", role="accelerator")
def nothing_for_a_graph(right: Device) -> Device:
    """A graph that is refused is None all the same."""

    class Faulty(right):
        def refusal(self, capability: str) -> Refusal | None:
            if capability == "graphs":
                return Refusal("graphs", "graphs", "none", "do without")
            return super().refusal(capability)

        def create_graph(self) -> None:
            return None

    return Faulty


@fault("capability", "accelerator/capabilities", role="accelerator")
def lacks_without_a_remedy(right: Device) -> Device:
    """What the device lacks is said, and not what to do about it."""

    class Faulty(right):
        def refusal(self, capability: str) -> Refusal | None:
            refused = super().refusal(capability)
            return refused and replace(refused, remedy="")

    return Faulty


@fault("capability", "accelerator/capabilities", also="types", role="accelerator")
def claims_what_it_has_not(right: Device) -> Device:
    """Triton is claimed and cannot be had."""

    class Faulty(right):
        def supports(self, capability: str) -> bool:
            return capability == "triton" or super().supports(capability)

    return Faulty


@fault("types", "accelerator/dtypes_agree", role="accelerator")
def dtype_in_the_list_alone(right: Device) -> Device:
    """A dtype is listed and denied when it is asked for."""

    class Faulty(right):
        def is_fp16_supported(self) -> bool:
            return False

        def supported_dtypes(self) -> list[torch.dtype]:
            return [*super().supported_dtypes(), torch.float16]

    return Faulty


@fault("types", "accelerator/properties_are_facts", also="works", role="accelerator")
def memory_in_words(right: Device) -> Device:
    """The device's memory is text."""

    class Faulty(right):
        def properties(self, device_index: int | None = None) -> DeviceProperties:
            return replace(super().properties(device_index), total_memory="8 GiB")

    return Faulty


@fault("compile", "accelerator/compile_backend_is_checked", role="accelerator")
def any_compile_backend_will_do(right: Device) -> Device:
    """A compile backend that torch does not know is taken."""

    class Faulty(right):
        def set_compile_backend(self, backend: str) -> None:
            self._compile_backend = backend

    return Faulty


@fault("environment", "accelerator/visible_devices_go_where_asked", role="accelerator")
def writes_its_own_environment(right: Device) -> Device:
    """The variable is written to this process, not to the environment that was handed over."""

    class Faulty(right):
        def set_visible_devices_envs(
            self, current_env: MutableMapping[str, str], local_accelerator_ids: Sequence[int]
        ) -> None:
            super().set_visible_devices_envs(os.environ, local_accelerator_ids)

    return Faulty


@fault("profiling", "accelerator/ranges_open_and_close", role="accelerator")
def range_closed_unopened(right: Device) -> Device:
    """A range that was not opened is closed without a word."""

    class Faulty(right):
        def range_pop(self, domain: str | None = None) -> None:
            if self._open_ranges:
                super().range_pop(domain)

    return Faulty


@fault("pinning", "accelerator/pinned_memory_is_pinned", role="accelerator")
def pins_nothing(right: Device) -> Device:
    """Pinning memory gives it back as it is."""

    class Faulty(right):
        def pin_memory(self, tensor: Tensor) -> Tensor:
            return tensor

    return Faulty


@fault("pinning", "accelerator/pageable_memory_is_not_pinned",
       "accelerator/pinned_memory_is_pinned", role="accelerator")  # fmt: skip
def all_is_pinned(right: Device) -> Device:
    """Every tensor is said to be pinned."""

    class Faulty(right):
        def is_pinned(self, tensor: Tensor) -> bool:
            return True

    return Faulty
