"""What only an engine shows: kernels that are right, and not the same from one call to another.

They are offered before all others, so that the engine takes them; each claims shape invariance.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from accel.engine import DecoderSpec, ModelPolicy
from accel.engine.policies.gpt2 import Gpt2Policy
from accel_conformance.faults.company import sum_split_by_height, sum_split_by_threads
from accel_conformance.faults.planting import Formula, Kernel, faults_of
from accel_conformance.faults.values import finish, wide

fault = faults_of("engine")

FIRST: dict[str, Any] = {"shape_invariant": True, "priority": 1000}
LARGE_CACHE = 1000  # rows of keys


@fault("one_value", "engine/*/one_value", also="adapter prefill", op="attention", **FIRST)
def decoding_by_another_kernel(kernel: Kernel) -> Kernel:
    """One query a sequence has a kernel of its own, with another order of the sum over D."""

    def faulty(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, *rest: Any) -> Tensor:
        if len(q) == len(spans):
            q, k = q.flip(-1), k.flip(-1)
        return kernel(q, k, v, spans, *rest)

    return faulty


@fault("one_value", "engine/*/one_value", also="adapter", op="logprob", **FIRST)
def trainer_scores_in_another_order(kernel: Kernel) -> Kernel:
    """Hidden rows and the sampler's logits are two ways to a value, and do not lead to one."""

    def faulty(x: Tensor, ids: Tensor, w: Tensor | None, *rest: Any) -> Any:
        if w is None:
            return kernel(x, ids, w, *rest)
        return kernel(x.flip(-1), ids, w.flip(-1), *rest)

    return faulty


@fault("company", "engine/*/company", also="adapter one_value prefill", **FIRST)
def large_batches_split(kernel: Kernel) -> Kernel:
    """Eight rows and more are summed in two halves."""
    return sum_split_by_height(kernel)  # type: ignore[no-any-return]


@fault("schedule", "engine/*/schedule", **FIRST)
def split_over_threads(kernel: Kernel) -> Kernel:
    """Each thread sums its part of K, in a model."""
    return sum_split_by_threads(kernel)  # type: ignore[no-any-return]


@fault("padding", "engine/*/padding", also="adapter company one_value positions prefill",
       **FIRST)  # fmt: skip
def scaled_by_the_largest(kernel: Kernel) -> Kernel:
    """Inputs are brought to one scale by their largest element, which padding may hold."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        if not x.numel():
            return kernel(x, w, b, act, out)
        largest = x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
        z = kernel(x / largest, w, None, None, wide(x)) * largest
        return finish(z if b is None else z + b, x, act, out)

    return faulty


@fault("prefill", "engine/*/prefill", op="attention", **FIRST)
def large_caches_read_otherwise(kernel: Kernel) -> Kernel:
    """A large cache has another order of the sum over D."""

    def faulty(q: Tensor, k: Tensor, *rest: Any) -> Tensor:
        return (
            kernel(q.flip(-1), k.flip(-1), *rest) if len(k) >= LARGE_CACHE else kernel(q, k, *rest)
        )

    return faulty


@fault("untouched", "engine/*/untouched", also="faithful", **FIRST)
def weights_packed_once(kernel: Kernel) -> Kernel:
    """A packed copy is kept for each weight, and not made again when the weight is trained."""
    packed: dict[Any, Tensor] = {}

    def faulty(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        return kernel(x, packed.setdefault((w.data_ptr(), w.shape), w.detach().clone()), *rest)

    return faulty


@fault("untouched", "engine/*/untouched", op="embedding", **FIRST)
def numbers_drawn_aside(kernel: Kernel) -> Kernel:
    """Torch's random numbers are used up, as for a stochastic rounding that is then not used."""

    def faulty(*args: Any) -> Tensor:
        torch.rand(1)
        return kernel(*args)

    return faulty


@fault("gradients_repeat", "engine/*/gradients", role="backward", **FIRST)
def gradients_added_in_any_order(right: Formula) -> Formula:
    """The weight's gradient sums rows in an order of its own, as with atomic additions."""
    chance = random.Random(0)  # a count would come round at the same call of every step

    def backward(grad: Tensor, needs: Any, x: Tensor, *rest: Any) -> Any:
        gradients = list(right(grad, needs, x, *rest))
        if chance.random() < 0.5 and grad.dim() > 1:
            turned = right(grad.flip(0), needs, x.flip(0), *rest)
            gradients[1:3] = turned[1:3]
        return tuple(gradients)

    return backward


@fault("faithful", "engine/*/faithful", role="policy")
def scores_scaled_twice() -> type[ModelPolicy]:
    """A plugin's policy that reads the architecture, and one number of it wrongly."""

    class Policy(Gpt2Policy):
        def spec(self, config: Any) -> DecoderSpec:
            right = super().spec(config)
            return replace(right, scales=tuple(scale**2 for scale in right.scales))

    return Policy
