"""Promises of kernels and builders that are not kept: dtypes, refusals, definitions, errors."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from accel.op_builder import Impl, OpBuilder, Request
from accel.refusal import Refusal
from accel_conformance.faults.planting import Kernel, faults_of

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
    return [Refusal("processor", "another processor", "this one", "use another")]


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
    found = Refusal("option", "no window", "", "leave it out")
    return [found] if request.options["window"] else []


@fault("reasons", "builders/*/reasons", op="attention", role="reasons")
def refuses_without_a_remedy(impl: Impl, request: Request) -> list[Refusal]:
    """A refusal does not say what the user can do."""
    return [Refusal("option", "no window", "a window")] if request.options["window"] else []


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
