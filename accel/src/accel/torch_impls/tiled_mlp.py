"""tiled_mlp: the products of one tile of rows after another."""

from __future__ import annotations

import math

from torch import Tensor

from accel.contracts.tiled_mlp import tiles
from accel.torch_impls.linear import gated_linear, linear


def tiled_mlp(
    x: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor | None, b_up: Tensor | None,
    b_down: Tensor | None, b_gate: Tensor | None, act: str, tile_rows: int,
) -> Tensor:  # fmt: skip
    m = math.prod(x.shape[:-1])
    flat, y = x.reshape(m, x.shape[-1]), x.new_empty((*x.shape[:-1], w_down.shape[0]))
    results = y.view(m, w_down.shape[0])
    for rows in tiles(m, tile_rows):
        if w_gate is None:
            hidden = linear(flat[rows], w_up, b_up, act, None)
        else:
            hidden = gated_linear(flat[rows], w_gate, w_up, b_gate, b_up, act, None)
        results[rows] = linear(hidden, w_down, b_down, None, None)
    return y
