"""Wrong results. A kernel's arguments are those of the op's schema."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel.contracts.activation import activate
from accel_conformance.faults.planting import Kernel, faults_of

fault = faults_of("numeric")


def finish(z: Tensor, x: Tensor, act: str | None, out: torch.dtype | None) -> Tensor:
    """What follows the sum in linear."""
    return activate(z, act).to(out or x.dtype)


def wide(x: Tensor) -> torch.dtype:
    """The dtype linear computes in."""
    return torch.promote_types(x.dtype, torch.float32)


@fault("accuracy", "ops/*", also="contained")
def dropped_k_tail(kernel: Kernel) -> Kernel:
    """The sum ends at the last whole vector of eight."""

    def faulty(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        whole = x.shape[-1] // 8 * 8
        return kernel(x[..., :whole], w[:, :whole], *rest)

    return faulty


@fault("accuracy", "ops/*")
def bias_twice(kernel: Kernel) -> Kernel:
    """The bias is added twice, as when each of two blocks of K adds it."""
    return lambda x, w, b, *rest: kernel(x, w, None if b is None else b + b, *rest)


@fault("accuracy", "ops/*")
def bias_forgotten(kernel: Kernel) -> Kernel:
    """The bias is never added."""
    return lambda x, w, b, *rest: kernel(x, w, None, *rest)


@fault("accuracy", "ops/*/act_*")
def activation_before_bias(kernel: Kernel) -> Kernel:
    """The activation is of the product alone; the bias is added after it."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        z = activate(kernel(x, w, None, None, wide(x)), act)
        return finish(z if b is None else z + b, x, None, out)

    return faulty


@fault("accuracy", "ops/*")
def accumulated_in_bf16(kernel: Kernel) -> Kernel:
    """Partial sums over sixteen columns are added in bfloat16."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        total = kernel(x[..., :16], w[:, :16], None, None, torch.bfloat16)
        for k in range(16, x.shape[-1], 16):
            total += kernel(x[..., k : k + 16], w[:, k : k + 16], None, None, torch.bfloat16)
        z = total.to(wide(x))
        return finish(z if b is None else z + b, x, act, out)

    return faulty


@fault("accuracy", "ops/*/float32/*")
def tensor_float_for_float32(kernel: Kernel) -> Kernel:
    """Of the mantissa of x and w, ten bits are kept."""

    def cut(t: Tensor) -> Tensor:
        t = t.contiguous()
        return (t.view(torch.int32) & ~0x1FFF).view(t.dtype) if t.dtype is torch.float32 else t

    return lambda x, w, *rest: kernel(cut(x), cut(w), *rest)


@fault("accuracy", "ops/*/bfloat16/*")
def truncated_to_bf16(kernel: Kernel) -> Kernel:
    """The lower half of fp32 is dropped where it should be rounded."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        if not x.dtype is (out or x.dtype) is torch.bfloat16:
            return kernel(x, w, b, act, out)
        result = kernel(x, w, b, act, torch.float32)
        return (result.view(torch.int32) & ~0xFFFF).view(torch.float32).bfloat16()

    return faulty


@fault("accuracy", "ops/*/many_rows", also="contained rows")
def one_wrong_element(kernel: Kernel) -> Kernel:
    """Of some thousand elements one is wrong, by a tenth of the result's RMS."""

    def faulty(*args: Any) -> Tensor:
        result = kernel(*args)
        if result.numel() > 1000:
            rms = result.double().square().mean().sqrt()
            result.view(-1)[result.numel() // 2] += (0.1 * rms).to(result.dtype)
        return result

    return faulty


@fault("result", "ops/*/bfloat16/out_fp32", "ops/*/float32/out_bf16")
def out_dtype_ignored(kernel: Kernel) -> Kernel:
    """The result has the dtype of x, whatever dtype was asked for."""
    return lambda x, w, b, act, out: kernel(x, w, b, act, None)


@fault("result", "ops/*/no_rows", also="works")
def empty_batch_forgotten(kernel: Kernel) -> Kernel:
    """No rows are taken for one."""

    def faulty(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        empty = not x.numel() and x.shape[-1]
        return kernel(x.new_zeros(1, x.shape[-1]) if empty else x, w, *rest)

    return faulty


@fault("accuracy", "ops/*", also="contained")
def skipped_last_tile(kernel: Kernel) -> Kernel:
    """Columns after the last whole tile of sixteen are left zero."""

    def faulty(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        result = kernel(x, w, *rest)
        result[..., w.shape[0] // 16 * 16 :] = 0
        return result

    return faulty


@fault("accuracy", "ops/*/many_rows", also="contained")
def rows_past_the_grid(kernel: Kernel) -> Kernel:
    """Rows after the 256th are left zero, as by a grid that is one block short."""

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        result = kernel(x, *rest)
        if x.dim() == 2:
            result[256:] = 0
        return result

    return faulty


@fault("accuracy", "large/*/accurate")
def one_in_a_million(kernel: Kernel) -> Kernel:
    """Of results with a million elements one is wrong, by a tenth of their RMS."""

    def faulty(*args: Any) -> Tensor:
        result = kernel(*args)
        if result.numel() >= 1_000_000:
            result.view(-1)[777_777] += 0.1 * result.double().square().mean().sqrt().item()
        return result

    return faulty


@fault("accuracy", "ops/*/act_*")
def activation_on_rounded(kernel: Kernel) -> Kernel:
    """The activation is computed in bfloat16."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, act: str | None, out: Any) -> Tensor:
        if act is None:
            return kernel(x, w, b, act, out)
        return finish(kernel(x, w, b, None, torch.bfloat16), x, act, out)

    return faulty


@fault("accuracy", "ops/*")
def bias_of_the_first_column(kernel: Kernel) -> Kernel:
    """All columns are given the first one's bias."""

    def faulty(x: Tensor, w: Tensor, b: Tensor | None, *rest: Any) -> Tensor:
        return kernel(x, w, b if b is None or not len(b) else b[:1].expand(len(b)), *rest)

    return faulty
