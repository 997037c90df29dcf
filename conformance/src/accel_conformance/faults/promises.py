"""Promises that are not kept: dtypes, refusals, definitions, errors, facts of the device."""

from __future__ import annotations

import itertools
import os
from collections.abc import MutableMapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from accel.accelerator import DeviceProperties
from accel.op_builder import Impl, OpBuilder, Request
from accel.refusal import Refusal
from accel_conformance.faults.planting import Device, Kernel, faults_of

fault = faults_of("contract")

_asked = itertools.count()


@fault("works", "*/float64/*")
def dtype_listed_and_not_served(kernel: Kernel) -> Kernel:
    """A dtype is listed, and using it raises."""

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        if x.dtype is torch.float64:
            raise RuntimeError("no kernel for float64")
        return kernel(x, *rest)

    return faulty


@fault("serves", "builders/*/serves", role="reasons")
def refuses_everything(impl: Impl, request: Request) -> list[Refusal]:
    """Whatever is asked is refused."""
    return [Refusal("processor", "another processor", "this one")]


@fault("reasons", "builders/*/reasons", also="works", role="reasons")
def changes_its_mind(impl: Impl, request: Request) -> list[Refusal]:
    """What was accepted is refused when it is asked again."""
    return refuses_everything(impl, request) if next(_asked) % 2 else []


@fault("reasons", "builders/*/reasons", also="works", role="reasons")
def answers_no_for_why(impl: Impl, request: Request) -> Any:
    """The answer is whether, where why was asked."""
    return False


@fault("accuracy", "ops/*/window*", "ops/*/softcap", "ops/*/slopes", "ops/*/mask_*",
       "ops/*/dropout", "ops/*/everything", op="attention", role="builder")  # fmt: skip
def accepts_everything(right: type[OpBuilder]) -> type[OpBuilder]:
    """What the kernel cannot do is accepted, and left out."""

    def load(self: OpBuilder, impl: Impl) -> Kernel:
        kernel = right.load(self, impl)
        return lambda q, k, v, spans, mask, slopes, seed, causal, scale, *options: kernel(
            q, k, v, spans, None, None, None, causal, scale, None, None, 0.0
        )

    return type(right.family(), (right,), {"load": load, "reasons": lambda *_: []})


@fault("reasons", "builders/*/reasons", op="attention", role="reasons")
def refuses_without_finding(impl: Impl, request: Request) -> list[Refusal]:
    """A refusal does not say what was found."""
    return [Refusal("option", "no window", "")] if request.options["window"] else []


@fault("reasons", "builders/*/reasons", op="attention", role="reasons")
def refuses_in_words(impl: Impl, request: Request) -> Any:
    """A refusal is a sentence, not a Refusal."""
    return ["no window"] if request.options["window"] else []


@fault("works", "builders/*/reasons", "builders/*/loads", "builders/*/serves", role="reasons")
def raises_for_an_answer(impl: Impl, request: Request) -> list[Refusal]:
    """An exception where a refusal was asked for."""
    raise NotImplementedError(f"{impl} does not know {request.dtype}")


@fault("loads", "builders/*/loads", "ops/*", "integers/*", "gradients/*", "bad_inputs/*",
       "special/*", "guards/*", also="works")  # fmt: skip
def loads_nothing(kernel: Kernel) -> Any:
    """load() gives None."""
    return None


@fault("definition", "builders/*/definition", role="builder")
def of_another_family(right: type[OpBuilder]) -> type[OpBuilder]:
    """An op of one family is offered by the builder of another."""
    return type("TilingBuilder", (right,), {})


@fault("definition", "builders/*/definition", role="builder")
def says_perhaps(right: type[OpBuilder]) -> type[OpBuilder]:
    """Whether something must be built is answered by a number."""
    return type(right.family(), (right,), {"needs_build": lambda self: 0})


@fault("definition", "builders/*/definition", priority=0.5)
def priority_between(kernel: Kernel) -> Kernel:
    """The priority is no whole number."""
    return kernel


@fault("bad_input", "bad_inputs/*/other_device", op="rms_norm", also="works")
def devices_not_looked_at(kernel: Kernel) -> Kernel:
    """A tensor of another device is left out."""

    def faulty(x: Tensor, w: Tensor | None, eps: float) -> Tensor:
        return kernel(x, w if w is None or w.device == x.device else None, eps)

    return faulty


@fault("unharmed", "bad_inputs/*/other_device", also="contained")
def spoiled_by_an_error(kernel: Kernel) -> Kernel:
    """After a call that raised, results are negated."""
    sign = [1]

    def faulty(*args: Any) -> Tensor:
        try:
            return kernel(*args) * sign[0]
        except Exception:
            sign[0] = -1
            raise

    return faulty


@fault("result", "ops/*/batched", also="works gradient")
def batch_flattened(kernel: Kernel) -> Kernel:
    """The result has one dimension for all rows."""

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        result = kernel(x, *rest)
        return result.flatten(0, -2) if x.dim() > 2 else result

    return faulty


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
                return Refusal("graphs", "graphs", "none")
            return super().refusal(capability)

        def create_graph(self) -> None:
            return None

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
