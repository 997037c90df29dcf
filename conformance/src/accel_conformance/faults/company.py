"""Values that depend on their company: other rows, threads, the order of a sum."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from accel_conformance.faults.planting import Kernel, fault
from accel_conformance.faults.values import finish, wide

TALL = 8


@fault("rows", "rows/*", shape_invariant=True)
def sum_split_by_height(kernel: Kernel) -> Kernel:
    """Inputs of eight rows and more are summed in two halves."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        half = x.shape[-1] // 2
        if x.numel() < TALL * x.shape[-1] or not half:
            return kernel(x, w, b, act, out)
        z = kernel(x[..., :half], w[:, :half], None, None, wide(x))
        return finish(z + kernel(x[..., half:], w[:, half:], b, None, wide(x)), x, act, out)

    return faulty


@fault("rows", "rows/*", shape_invariant=True)
def sum_split_by_threads(kernel: Kernel) -> Kernel:
    """Each thread sums its part of K."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        threads = torch.get_num_threads()
        first, *others = zip(x.tensor_split(threads, -1), w.tensor_split(threads, -1))
        z = kernel(*first, b, None, wide(x))
        for part in others:
            z = z + kernel(*part, None, None, wide(x))
        return finish(z, x, act, out)

    return faulty


@fault("rows", "rows/*", op="attention", shape_invariant=True)
def prompt_summed_backwards(kernel: Kernel) -> Kernel:
    """As when prompts have a kernel of their own, with another order of the sum over D."""

    def faulty(q: Tensor, k: Tensor, *rest: Any) -> Any:
        return kernel(q.flip(-1), k.flip(-1), *rest) if len(q) >= TALL else kernel(q, k, *rest)

    return faulty


@fault("rows", "rows/*", also="accuracy contained padded", op="dropout_add")
def dropped_by_place(kernel: Kernel) -> Kernel:
    """Random bits by where a row lies, whatever its number."""
    return lambda x, residual, b, seed, rows, p: kernel(x, residual, b, seed, None, p)


@fault("repeatable", "ops/*", "gradients/*", also="contained rows unharmed")
def sum_in_any_order(kernel: Kernel) -> Kernel:
    """As with atomic additions: the order of the sum changes from call to call."""
    calls = itertools.count()

    def faulty(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        turn = next(calls) % max(x.shape[-1], 1)
        return kernel(x.roll(turn, -1), w.roll(turn, -1), *rest)

    return faulty


@fault("contained", "special/*", also="rows")
def rows_blended(kernel: Kernel) -> Kernel:
    """Other rows count zero times, which is not nothing where they hold NaN."""

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        others = x.sum(tuple(range(x.dim() - 1)), keepdim=True) if x.dim() > 1 else x
        return kernel(x + 0 * others, *rest)

    return faulty


@fault("contained", "special/*/act_relu")
def relu_loses_nan(kernel: Kernel) -> Kernel:
    """A maximum that prefers the number."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        result = kernel(x, w, b, act, out)
        return result.nan_to_num_(0.0, torch.inf, -torch.inf) if act == "relu" else result

    return faulty
