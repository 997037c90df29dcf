"""gated_linear: ``act(x @ w_gate.T + b_gate) * (x @ w_up.T + b_up)``, both products with the bits
of linear's."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from accel.triton_kernels import launching
from accel.triton_kernels.activation import activate
from accel.triton_kernels.product import (
    CHUNK,
    ROWS,
    accumulate,
    add_columns,
    no_sums,
    store_rows,
)
from accel.triton_kernels.tuning import Tuning


@triton.jit(do_not_specialize=["m"])
def gated_linear_kernel(
    x, gate, up, b_gate, b_up, y, m, n, k_size, x_row, x_k, gate_row, gate_k, up_row, up_k,
    gate_step, up_step,
    ACT: tl.constexpr, BLOCKS: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """x [m, k_size], gate and up [n, k_size], biases [n] or None, y [m, n] contiguous. x is gone
    through twice: the second time it comes from a cache."""
    row = tl.program_id(0).to(tl.int64) * (ROWS * BLOCKS)
    cols = tl.program_id(1) * N + tl.arange(0, N)
    gates = accumulate(
        no_sums(BLOCKS, N), x, row, m, gate, cols, n, k_size, x_row, x_k, gate_row, gate_k,
        BLOCKS, K,
    )  # fmt: skip
    ups = accumulate(
        no_sums(BLOCKS, N), x, row, m, up, cols, n, k_size, x_row, x_k, up_row, up_k, BLOCKS, K
    )
    for i in tl.static_range(BLOCKS):
        rows = row + i * ROWS + tl.arange(0, ROWS)
        opened = activate(add_columns(gates[i], b_gate, cols, n, gate_step), ACT)
        z = opened * add_columns(ups[i], b_up, cols, n, up_step)
        store_rows(y, z, rows, m, cols, n, n, 1)


def gated_linear(
    tuning: Tuning, x: Tensor, w_gate: Tensor, w_up: Tensor, b_gate: Tensor | None,
    b_up: Tensor | None, act: str, out_dtype: torch.dtype | None,
) -> Tensor:  # fmt: skip
    """``[..., N]`` of x ``[..., K]`` and two weights ``[N, K]``, in ``out_dtype`` or x's."""
    launching.require_one_device(x, w_gate, w_up, b_gate, b_up)
    rows, (n, k) = launching.as_rows(x), w_gate.shape
    m = rows.shape[0]
    y = x.new_empty((*x.shape[:-1], n), dtype=out_dtype or x.dtype)
    if y.numel():
        tile = tuning.product(x.dtype, m).halved()  # two products' sums
        launching.launch(
            gated_linear_kernel,
            launching.grid(tile, m, n),
            tile,
            rows, w_gate, w_up, b_gate, b_up, y, m, n, k, *rows.stride(), *w_gate.stride(),
            *w_up.stride(), launching.step_of(b_gate), launching.step_of(b_up),
            ACT=act, BLOCKS=tile.blocks, N=tile.columns, K=CHUNK[x.dtype],
        )  # fmt: skip
    return y
