"""Values that depend on their company: other rows, threads, the order of a sum."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from accel.contracts import LINEAR
from accel_conformance.faults.planting import Kernel, faults_of
from accel_conformance.faults.values import finish, wide

fault = faults_of("engine")

TALL = 8
NARROW = 48


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


@fault("rows", "rows/*", also="features", shape_invariant=True)
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


@fault("features", "features/*", shape_invariant=True)
def sum_split_by_width(kernel: Kernel) -> Kernel:
    """Fewer than 48 output features are summed in two halves."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        half = x.shape[-1] // 2
        if len(w) >= NARROW or not half:
            return kernel(x, w, b, act, out)
        z = kernel(x[..., :half], w[:, :half], None, None, wide(x))
        return finish(z + kernel(x[..., half:], w[:, half:], b, None, wide(x)), x, act, out)

    return faulty


@fault("rows", "rows/*", op="attention", shape_invariant=True)
def prompt_summed_backwards(kernel: Kernel) -> Kernel:
    """Prompts have a kernel of their own, with another order of the sum over D."""

    def faulty(q: Tensor, k: Tensor, *rest: Any) -> Any:
        return kernel(q.flip(-1), k.flip(-1), *rest) if len(q) >= TALL else kernel(q, k, *rest)

    return faulty


@fault("rows", "rows/*", also="accuracy contained padded", op="dropout_add")
def dropped_by_place(kernel: Kernel) -> Kernel:
    """What is dropped of a row depends on where it lies, whatever its number."""
    return lambda x, residual, b, seed, rows, p: kernel(x, residual, b, seed, None, p)


@fault("repeatable", "ops/*", "gradients/*", also="contained rows unharmed")
def sum_in_any_order(kernel: Kernel) -> Kernel:
    """The order of the sum changes from call to call, as with atomic additions."""
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
    """relu is a maximum that prefers a number to NaN."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        result = kernel(x, w, b, act, out)
        return result.nan_to_num_(0.0, torch.inf, -torch.inf) if act == "relu" else result

    return faulty


@fault("rows", "rows/*", shape_invariant=True)
def tail_rows_summed_otherwise(kernel: Kernel) -> Kernel:
    """Rows after the last whole block of four are summed in two halves."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        half, whole = x.shape[-1] // 2, len(x) // 4 * 4
        result = kernel(x, w, b, act, out)
        if x.dim() == 2 and half and 0 < whole < len(x):
            tail = x[whole:]
            z = kernel(tail[:, :half], w[:, :half], None, None, wide(x))
            z = z + kernel(tail[:, half:], w[:, half:], b, None, wide(x))
            result[whole:] = finish(z, x, act, out)
        return result

    return faulty


@fault("rows", "rows/*", shape_invariant=True)
def sum_split_by_alignment(kernel: Kernel) -> Kernel:
    """Rows that do not begin where 64 bytes do are summed in two halves."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        half = x.shape[-1] // 2
        if x.data_ptr() % 64 == 0 or not half:
            return kernel(x, w, b, act, out)
        z = kernel(x[..., :half], w[:, :half], None, None, wide(x))
        return finish(z + kernel(x[..., half:], w[:, half:], b, None, wide(x)), x, act, out)

    return faulty


@fault("rows", "rows/*", op="attention", shape_invariant=True)
def decode_summed_backwards(kernel: Kernel) -> Kernel:
    """A single query has a kernel of its own, with another order of the sum over D."""

    def faulty(q: Tensor, k: Tensor, *rest: Any) -> Any:
        return kernel(q.flip(-1), k.flip(-1), *rest) if len(q) == 1 else kernel(q, k, *rest)

    return faulty


@fault("rows", "rows/*", op="rms_norm", shape_invariant=True)
def norm_rounded_where_tall(kernel: Kernel) -> Kernel:
    """Eight rows and more have their squares summed from the other end."""

    def faulty(x: Tensor, w: Tensor | None, eps: float) -> Tensor:
        if x.numel() < TALL * x.shape[-1]:
            return kernel(x, w, eps)
        return kernel(x.flip(-1), None if w is None else w.flip(-1), eps).flip(-1)

    return faulty


@fault("rows", "rows/*", op="logprob", also="agreement", shape_invariant=True)
def vocabulary_in_tiles_where_tall(kernel: Kernel) -> Kernel:
    """Of eight rows and more the logits are of sums in two halves."""

    def faulty(x: Tensor, ids: Tensor, w: Tensor | None, b: Any, *rest: Any) -> Any:
        half = x.shape[-1] // 2
        if w is None or ids.numel() < TALL or not half:
            return kernel(x, ids, w, b, *rest)
        z = LINEAR.reference(x[..., :half], w[:, :half], None, None, wide(x))
        z = z + LINEAR.reference(x[..., half:], w[:, half:], b, None, wide(x))
        return kernel(z, ids, None, None, *rest)

    return faulty


@fault(
    "agreement",
    "agreement/*",
    op="logprob",
    beside=("linear",),
    shape_invariant=True,
    also="bad_input",
)
def logits_of_another_sum(kernel: Kernel) -> Kernel:
    """A trainer's logits are summed in two halves, a sampler's from end to end."""

    def faulty(x: Tensor, ids: Tensor, w: Tensor | None, b: Any, *rest: Any) -> Any:
        half = x.shape[-1] // 2
        if w is None or not half:
            return kernel(x, ids, w, b, *rest)
        found = [
            kernel(_halved(row, w, b, half), one, None, None, *rest)
            for row, one in zip(x.reshape(-1, 1, x.shape[-1]), ids.reshape(-1, 1))
        ]
        if not found:
            return kernel(x, ids, w, b, *rest)
        return tuple(torch.cat(parts).reshape(ids.shape) for parts in zip(*found))

    return faulty


def _halved(x: Tensor, w: Tensor, b: Tensor | None, half: int) -> Tensor:
    z = LINEAR.reference(x[..., :half].clone(), w[:, :half], None, None, wide(x))
    return z + LINEAR.reference(x[..., half:].clone(), w[:, half:], b, None, wide(x))
