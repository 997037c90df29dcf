"""The product with a weight in tiles that nothing watches: each tile's share is written where it
belongs, so that nothing is put together from parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from accel import ops
from accel.layers.hooks import has_hooks
from accel.layers.linear import Linear
from accel.ops.gradient import no_autocast

Tiles = Sequence[Sequence[Tensor]]  # of a weight [N, K], row by row; tile (o, i) is [N_o, K_i]


def tiled_product(x: Tensor, tiles: Tiles, biases: Sequence[Tensor]) -> Tensor:
    """``x @ weight.T + bias`` by ``tiled_linear``: x ``[..., K]``, ``biases[o]`` ``[N_o]``, or none
    at all; returns ``[..., N]``. Differentiable as often as asked."""
    grid = (len(tiles), len(tiles[0]))
    flat = [tile for row in tiles for tile in row]
    return _TiledProduct.apply(x, grid, *flat, *biases)  # type: ignore[no-any-return,no-untyped-call]


def multiplies_alone(tile: Any) -> bool:
    """True if a call of ``tile`` would do nothing but multiply by its Parameters."""
    plain = type(tile) is Linear and "forward" not in vars(tile)
    return (
        plain
        and tile.act is None
        and type(tile.weight) is nn.Parameter
        and tile._compiled_call_impl is None
        and not has_hooks(tile)
    )


class _TiledProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: tuple[int, int], *parameters: Tensor) -> Tensor:
        flat, biases = _parted(parameters, grid)
        ctx.grid = grid
        ctx.save_for_backward(x, *flat)  # as they are: a Parameter that is sharded stays one
        tiles = _by_rows(flat, grid)
        inputs, heights = x.split(_widths(tiles), -1), _heights(tiles)
        y = x.new_empty((*x.shape[:-1], sum(heights)))
        for o, place in enumerate(y.split(heights, -1)):
            for i, tile in enumerate(tiles[o]):
                bias = biases[o] if biases and i == grid[1] - 1 else None
                ops.tiled_linear(inputs[i], tile, bias, place if i else None, out=place)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *flat = ctx.saved_tensors
        tiles = _by_rows(flat, ctx.grid)
        needs_x, _, *needs = ctx.needs_input_grad
        needs_tiles, needs_biases = _parted(needs, ctx.grid)
        m = math.prod(x.shape[:-1])  # counted: -1 cannot be inferred beside a 0
        with no_autocast(grad.device.type):
            inputs = x.reshape(m, x.shape[-1]).split(_widths(tiles), 1)
            grads = grad.reshape(m, grad.shape[-1]).split(_heights(tiles), 1)
            dx = _of_input(grads, tiles).view(x.shape) if needs_x else None
            pairs = ((g.t(), part.t()) for g in grads for part in inputs)
            of_tiles = [ops.linear(*pair) if n else None for pair, n in zip(pairs, needs_tiles)]
            of_biases = [g.sum(0) if n else None for g, n in zip(grads, needs_biases)]
        return dx, None, *of_tiles, *of_biases


def _of_input(grads: Sequence[Tensor], tiles: Tiles) -> Tensor:
    """``[m, K]``: for each column of tiles the sum of ``[m, N_o]`` gradients times its tiles."""
    columns = list(zip(*tiles))
    if torch.is_grad_enabled():  # recorded, for a second derivative
        shares = [[ops.linear(g, t.t()) for g, t in zip(grads, column)] for column in columns]
        return torch.cat([torch.stack(of_column).sum(0) for of_column in shares], 1)
    dx = grads[0].new_empty(len(grads[0]), sum(_widths(tiles)))
    for place, column in zip(dx.split(_widths(tiles), 1), columns):
        for o, (g, tile) in enumerate(zip(grads, column)):
            ops.tiled_linear(g, tile.t(), None, place if o else None, out=place)
    return dx


def _parted(of_parameters: Sequence[Any], grid: tuple[int, int]) -> tuple[Any, Any]:
    """(what is of the tiles, what is of the biases)"""
    tiles = grid[0] * grid[1]
    return of_parameters[:tiles], of_parameters[tiles:]


def _by_rows(flat: Sequence[Tensor], grid: tuple[int, int]) -> Tiles:
    rows, columns = grid
    return [flat[o * columns : (o + 1) * columns] for o in range(rows)]


def _widths(tiles: Tiles) -> list[int]:
    return [tile.shape[1] for tile in tiles[0]]


def _heights(tiles: Tiles) -> list[int]:
    return [row[0].shape[0] for row in tiles]
