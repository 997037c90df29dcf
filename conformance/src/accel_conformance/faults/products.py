"""Wrong results of the ops around linear: adapters, experts, quantised weights, tiles, tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accel.contracts import LINEAR
from accel_conformance.faults.planting import Kernel, faults_of
from accel_conformance.faults.values import finish, wide

fault = faults_of("numeric")


@fault("accuracy", "ops/*", op="lora_linear")
def adapter_unscaled(kernel: Kernel) -> Kernel:
    """The adapter's share is added as if its scale were 1."""
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
    """Each group of the weight is multiplied by the scale of the next."""
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


@fault("accuracy", "ops/*", op="gated_linear", also="contained")
def gate_and_up_swapped(kernel: Kernel) -> Kernel:
    """The activation is of the up projection."""
    return lambda x, gate, up, b_gate, b_up, *rest: kernel(x, up, gate, b_up, b_gate, *rest)


@fault("accuracy", "ops/*", also="bad_input", op="gated_linear")
def gate_not_activated(kernel: Kernel) -> Kernel:
    """The gate multiplies as it is."""

    def faulty(
        x: Tensor, gate: Tensor, up: Tensor, b_gate: Any, b_up: Any, act: str, out: Any
    ) -> Tensor:
        one, other = (LINEAR.reference(x, *p, None, wide(x)) for p in ((gate, b_gate), (up, b_up)))
        return (one * other).to(out or x.dtype)

    return faulty


@fault("accuracy", "ops/*/nibbles*", "ops/*/long_sum", "ops/*/layout_sliced",
       op="quantized_linear", also="contained")  # fmt: skip
def nibbles_without_sign(kernel: Kernel) -> Kernel:
    """Four bits are taken for 0 to 15, where they mean -8 to 7."""

    def faulty(
        x: Tensor, w: Tensor, scales: Tensor, b: Tensor | None, bits: int, act: Any, out: Any
    ) -> Tensor:
        if bits == 8:
            return kernel(x, w, scales, b, bits, act, out)
        z = kernel(x, w, scales, None, bits, None, wide(x)).to(wide(x))
        ones = scales.repeat_interleave(x.shape[-1] // scales.shape[1], 1).to(wide(x))
        z = z + 8 * (x.to(wide(x)) @ ones.t())
        return finish(z if b is None else z + b, x, act, out)

    return faulty


@fault("accuracy", "ops/*", op="grouped_linear", also="contained")
def expert_of_the_row_before(kernel: Kernel) -> Kernel:
    """Each expert's rows begin and end one too late."""

    def faulty(x: Tensor, w: Tensor, ends: Tensor, *rest: Any) -> Tensor:
        return kernel(x, w, (ends + 1).clamp(max=len(x)), *rest)

    return faulty


@fault("accuracy", "ops/*", op="tiled_mlp", also="contained")
def last_tile_of_rows_skipped(kernel: Kernel) -> Kernel:
    """Rows of the last tile are left zero."""

    def faulty(x: Tensor, *rest: Any) -> Tensor:
        result, tile_rows = kernel(x, *rest), rest[-1]
        rows = result.view(-1, result.shape[-1])
        if len(rows) > tile_rows:
            rows[(len(rows) - 1) // tile_rows * tile_rows :] = 0
        return result

    return faulty


@fault("accuracy", "ops/*", op="embedding", also="rows")
def id_off_by_one(kernel: Kernel) -> Kernel:
    """An id gives the row before the one that it names."""
    return lambda ids, w: kernel((ids - 1).clamp(min=0), w)


@fault("accuracy", "ops/*", op="tiled_linear", also="placed contained")
def bias_of_every_tile(kernel: Kernel) -> Kernel:
    """The bias is added by each tile that has a partial sum, beside the one that it is given to."""

    def faulty(x: Tensor, w: Tensor, b: Any, partial: Tensor | None, out: Any) -> Tensor:
        return kernel(x, w, b if b is None or partial is None else b + b, partial, out)

    return faulty
