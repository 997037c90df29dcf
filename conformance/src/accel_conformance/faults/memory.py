"""Memory that is not the kernel's to read, to write or to give away."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel_conformance.faults.planting import Kernel, fault


@fault("accuracy", "ops/*/layout_transposed", "ops/*/layout_sliced", also="contained")
def strides_ignored(kernel: Kernel) -> Kernel:
    """Rows are read from x's storage as if they lay one behind the other."""

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        if x.is_contiguous() or 0 in x.stride():
            return kernel(x, *rest)
        return kernel(x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride(), 0), *rest)

    return faulty


@fault("accuracy", "ops/*", also="repeatable contained unharmed rows")
def unwritten_n_tail(kernel: Kernel) -> Kernel:
    """The last column is never written: it holds what the memory held."""

    def faulty(*args: Any) -> Tensor:
        result = kernel(*args)
        unwritten = torch.empty_like(result)
        unwritten[..., :-1] = result[..., :-1]
        return unwritten

    return faulty


@fault("repeatable", "ops/*", "gradients/*", also="accuracy contained unharmed rows")
def stale_last_row(kernel: Kernel) -> Kernel:
    """The last row is that of the call before."""
    stale: dict[Any, Tensor] = {}

    def faulty(*args: Any) -> Tensor:
        result = kernel(*args)
        if result.numel() and result.dim() > 1:
            key = (result.shape, result.dtype)
            last = result[..., -1, :].clone()
            result[..., -1, :] = stale.get(key, torch.zeros_like(last))
            stale[key] = last
        return result

    return faulty


@fault("inputs_kept", "ops/*", also="accuracy repeatable contained unharmed rows works gradient")
def input_overwritten(kernel: Kernel) -> Kernel:
    """x is changed where it lies, as by a kernel that prepares its input in place."""

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        result = kernel(x, *rest)
        if x.numel() and 0 not in x.stride():
            x[..., 0].neg_()
        return result

    return faulty


@fault(
    "fresh", "ops/*", "gradients/*", op="rms_norm",
    also="inputs_kept accuracy repeatable contained unharmed rows padded works gradient",
)  # fmt: skip
def result_in_the_input(kernel: Kernel) -> Kernel:
    def faulty(x: Tensor, *rest: Any) -> Tensor:
        result = kernel(x, *rest)
        return result if 0 in x.stride() else x.copy_(result)

    return faulty


@fault("fresh", "ops/*", also="repeatable contained rows")
def one_buffer_for_all(kernel: Kernel) -> Kernel:
    """Results of one shape share their memory."""
    buffers: dict[Any, Tensor] = {}

    def faulty(*args: Any) -> Tensor:
        result = kernel(*args)
        return buffers.setdefault((result.shape, result.dtype), result).copy_(result)

    return faulty
