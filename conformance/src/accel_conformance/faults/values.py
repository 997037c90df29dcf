"""Wrong results. A kernel's arguments are those of the op's schema."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel.contracts import LINEAR
from accel.contracts.activation import activate
from accel.contracts.softmax import scores
from accel_conformance.faults.planting import Kernel, fault


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
    """As when each of two K blocks adds it."""
    return lambda x, w, b, *rest: kernel(x, w, None if b is None else b + b, *rest)


@fault("accuracy", "ops/*")
def bias_forgotten(kernel: Kernel) -> Kernel:
    return lambda x, w, b, *rest: kernel(x, w, None, *rest)


@fault("accuracy", "ops/*/act_*")
def activation_before_bias(kernel: Kernel) -> Kernel:
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
    """By a tenth of the result's RMS: too little for a norm over thousands of elements."""

    def faulty(*args: Any) -> Tensor:
        result = kernel(*args)
        if result.numel() > 1000:
            rms = result.double().square().mean().sqrt()
            result.view(-1)[result.numel() // 2] += (0.1 * rms).to(result.dtype)
        return result

    return faulty


@fault("accuracy", "ops/*", op="rms_norm")
def epsilon_forgotten(kernel: Kernel) -> Kernel:
    return lambda x, w, eps: kernel(x, w, 0.0)


@fault("accuracy", "ops/*", op="lora_linear")
def adapter_unscaled(kernel: Kernel) -> Kernel:
    return lambda x, w, lora_a, lora_b, b, scale, out: kernel(x, w, lora_a, lora_b, b, 1.0, out)


@fault("accuracy", "ops/*/nibbles*", "ops/*/long_sum", "ops/*/layout_sliced",
       also="contained", op="quantized_linear")  # fmt: skip
def nibbles_swapped(kernel: Kernel) -> Kernel:
    """The high half of a byte is taken for the first of its two values."""

    def faulty(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        return kernel(x, w if w.dtype is torch.int8 else (w << 4) | (w >> 4), *rest)

    return faulty


@fault("accuracy", "ops/*", also="contained", op="quantized_linear")
def scales_of_the_next_group(kernel: Kernel) -> Kernel:
    return lambda x, w, scales, *rest: kernel(x, w, scales.roll(-1, 1), *rest)


@fault("accuracy", "ops/*", also="contained bad_input", op="norm_linear")
def mean_left_in(kernel: Kernel) -> Kernel:
    """A layer norm that divides and does not subtract."""

    def faulty(
        x: Tensor, w: Tensor, norm_w: Any, norm_b: Any, b: Any, _: str, *rest: Any
    ) -> Tensor:
        return kernel(x, w, norm_w, None, b, "rms", *rest)

    return faulty


@fault("accuracy", "ops/*/rows_past_the_end", "ops/*/out_fp32",
       also="contained", op="grouped_linear")  # fmt: skip
def last_expert_has_the_rest(kernel: Kernel) -> Kernel:
    """Rows past the last end are taken for the last expert's."""

    def faulty(x: Tensor, w: Tensor, ends: Tensor, *rest: Any) -> Tensor:
        all_rows = ends.new_full((1,), len(x))
        return kernel(x, w, torch.cat([ends[:-1], all_rows]) if len(ends) else ends, *rest)

    return faulty


@fault("accuracy", "ops/*interleaved*", also="contained", op="rotary")
def halves_for_pairs(kernel: Kernel) -> Kernel:
    return lambda x, cos, sin, interleaved: kernel(x, cos, sin, False)


@fault("accuracy", "ops/*", also="contained", op="attention")
def aligned_at_the_start(kernel: Kernel) -> Kernel:
    """The first query of a span sees one key, whatever lies before it in the cache."""

    def faulty(
        q: Tensor, k: Tensor, v: Tensor, spans: Tensor, mask: Tensor | None,
        slopes: Tensor | None, seed: Tensor | None, causal: bool, *rest: Any,
    ) -> Tensor:  # fmt: skip
        if causal:
            spans = torch.stack([*spans[:, :3].t(), spans[:, [1, 3]].amin(1)], 1)
        return kernel(q, k, v, spans, mask, slopes, seed, causal, *rest)

    return faulty


@fault("accuracy", "ops/*/bfloat16/*", "ops/*/float16/*", also="bad_input", op="logprob")
def logits_rounded(kernel: Kernel) -> Kernel:
    """To x's dtype, as by the sampler that a trainer then does not agree with."""

    def faulty(x: Tensor, ids: Tensor, w: Tensor | None, b: Tensor | None, *rest: Any) -> Any:
        z = x if w is None else LINEAR.reference(x, w, b)
        return kernel(z, ids, None, None, *rest)

    return faulty


@fault("accuracy", "ops/*/logits_filtered", also="gradient", op="logprob")
def nothing_times_infinity(kernel: Kernel) -> Kernel:
    """A filtered logit's probability of 0 times the logit."""

    def faulty(x: Tensor, ids: Tensor, *rest: Any) -> Any:
        chosen, entropy = kernel(x, ids, *rest)
        return chosen, entropy + 0 * x.sum(-1)

    return faulty


@fault("accuracy", "ops/*/hidden", also="gradient", op="softmax")
def nothing_seen_is_nan(kernel: Kernel) -> Kernel:
    """As nothing over nothing is."""

    def faulty(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        blind = (scores(x, mask, scale) == -torch.inf).all(-1, keepdim=True)
        return kernel(x, mask, scale).masked_fill_(blind, torch.nan)

    return faulty


@fault("result", "ops/*/out_fp32", "ops/*/out_bf16")
def out_dtype_ignored(kernel: Kernel) -> Kernel:
    return lambda x, w, b, act, out: kernel(x, w, b, act, None)


@fault("result", "ops/*/no_rows", also="works")
def empty_batch_forgotten(kernel: Kernel) -> Kernel:
    """No rows are taken for one."""

    def faulty(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        empty = not x.numel() and x.shape[-1]
        return kernel(x.new_zeros(1, x.shape[-1]) if empty else x, w, *rest)

    return faulty
