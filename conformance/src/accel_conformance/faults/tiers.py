"""Errors too small for the contracts' tolerances, and such as only unusual inputs show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel_conformance.faults.planting import Kernel, faults_of
from accel_conformance.faults.values import finish, wide

fault = faults_of("numeric")


@fault("componentwise", "ops/*/bfloat16/*", "drawn/*/bfloat16/*")
def accumulated_in_fp16(kernel: Kernel) -> Kernel:
    """Sums for a result of bfloat16 are added in float16: small elements lose by it, large ones do
    not."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        if not x.dtype is (out or x.dtype) is torch.bfloat16:
            return kernel(x, w, b, act, out)
        total = kernel(x[..., :16], w[:, :16], b, None, torch.float16)
        for k in range(16, x.shape[-1], 16):
            total += kernel(x[..., k : k + 16], w[:, k : k + 16], None, None, torch.float16)
        return finish(total.to(wide(x)), x, act, out)

    return faulty


@fault("componentwise", "ops/*/bfloat16/*", "ops/*/float16/*", "ops/*/float32/out_bf16",
       "drawn/*/bfloat16/*", "drawn/*/float16/*", also="contained")  # fmt: skip
def small_results_share_an_exponent(kernel: Kernel) -> Kernel:
    """All elements have the last place of one as large as the RMS, as in a block format."""

    def faulty(*args: Any) -> Tensor:
        result = kernel(*args)
        if result.dtype not in (torch.bfloat16, torch.float16) or not result.numel():
            return result
        size = result.double().square().mean().sqrt()
        place = torch.finfo(result.dtype).eps / 2 * 2.0 ** size.log2().floor()
        fine = result.double()
        return torch.where(fine.abs() < size, (fine / place).round() * place, fine).to(result.dtype)

    return faulty


@fault("whole", "integers/*")
def sum_through_a_mean(kernel: Kernel) -> Kernel:
    """The sum is divided by its length and multiplied again: two roundings too many."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        length = max(x.shape[-1], 1)
        return finish(kernel(x, w, b, None, wide(x)) / length * length, x, act, out)

    return faulty


@fault("componentwise", "drawn/*")
def aligned_reads(kernel: Kernel) -> Kernel:
    """What has no gaps is read from the last boundary of 16 bytes on."""

    def boundary(t: Tensor) -> Tensor:
        beyond = t.data_ptr() % 16 // t.element_size()
        if not beyond or not t.is_contiguous():
            return t
        return t.as_strided(t.shape, t.stride(), t.storage_offset() - beyond)

    return lambda x, w, *rest: kernel(boundary(x), boundary(w), *rest)
