"""What shows in large calls alone, or among neighbours that hold no numbers."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from accel_conformance.faults.planting import Kernel, faults_of

fault = faults_of("engine")

LARGE = 400  # rows


@fault("rows", "large/*/rows", also="padded", op="rms_norm", shape_invariant=True)
def large_calls_in_another_order(kernel: Kernel) -> Kernel:
    """Many rows have a kernel of their own, whose sums begin at the other end."""

    def faulty(x: Tensor, w: Tensor | None, eps: float) -> Tensor:
        if x.numel() < LARGE * x.shape[-1]:
            return kernel(x, w, eps)
        return kernel(x.flip(-1), None if w is None else w.flip(-1), eps).flip(-1)

    return faulty


@fault("rows", "large/*/rows", also="padded", op="rms_norm", shape_invariant=True)
def one_result_in_a_million_differs(kernel: Kernel) -> Kernel:
    """The last bit of one number of a large call differs now and then, as a race would have it."""
    calls = itertools.count()

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        result = kernel(x, *rest)
        if x.numel() >= LARGE * x.shape[-1] and next(calls) % 2:
            one = result.flatten()[-1:]
            result.view(-1)[-1:] = torch.nextafter(one, torch.full_like(one, torch.inf))
        return result

    return faulty


@fault("padded", "rows/*/padded", also="contained", op="rms_norm", shape_invariant=True)
def neighbours_counted_for_nothing(kernel: Kernel) -> Kernel:
    """The row before counts zero times, which is not nothing where it holds NaN."""

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        return kernel(x + 0 * x.roll(1, 0), *rest) if x.dim() > 1 else kernel(x, *rest)

    return faulty


@fault("padded", "rows/*/padded", also="rows unseen", op="attention", shape_invariant=True)
def queries_zeroed_by_a_product(kernel: Kernel) -> Kernel:
    """Padded queries are multiplied away all at once, with those beside them."""

    def faulty(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, *rest: Any) -> Tensor:
        before = v.new_zeros(1, *v.shape[1:])
        return kernel(q, k, v + 0 * torch.cat((before, v[:-1])), spans, *rest)

    return faulty


@fault("unseen", "rows/*/unseen", op="attention", shape_invariant=True)
def unseen_values_times_nothing(kernel: Kernel) -> Kernel:
    """The values that a query does not see have the weight 0, and 0 times NaN is NaN."""

    def faulty(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, *rest: Any) -> Tensor:
        result = kernel(q, k, v, spans, *rest)
        for q_start, q_len, k_start, k_len in spans.tolist():
            nothing = (0 * v[k_start : k_start + k_len]).sum()
            result[q_start : q_start + q_len] += nothing
        return result

    return faulty
