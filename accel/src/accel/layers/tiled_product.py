"""The product with a weight in tiles that nothing watches: each tile's share is written where it
belongs, so that nothing is put together from parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from accel import ops
from accel.contracts import TILED_LINEAR
from accel.layers.hooks import has_hooks
from accel.layers.linear import Linear
from accel.ops.door import has_own_gradient
from accel.ops.gradient import kernels_may_serve, no_autocast

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
            in_place = kernels_may_serve((grad,))
            multiply = _multiplier(inputs[0], tiles[0][0]) if in_place else _by_op
            of_input = _of_input if in_place else _of_input_recorded
            dx = of_input(grads, tiles, multiply).view(x.shape) if needs_x else None
            pairs = ((g.t(), part) for g in grads for part in inputs)
            of_tiles = [multiply(*pair) if n else None for pair, n in zip(pairs, needs_tiles)]
            of_biases = [g.sum(0) if n else None for g, n in zip(grads, needs_biases)]
        return dx, None, *of_tiles, *of_biases


def _multiplier(x: Tensor, tile: Tensor) -> Callable[..., Tensor]:
    """``multiply(a, b)``: the product that gradients of ``linear`` are made of, torch's own where
    they are. Called directly it takes 0.94 of the backward's time that the ops take, which read a
    transposed weight by columns (8 tiles [1024, 512], 512 rows, fp32, 2-core Zen 3)."""
    own = has_own_gradient(TILED_LINEAR, (x, tile, None, None), (None,))
    return _by_op if own else _by_torch


def _by_op(a: Tensor, b: Tensor, out: Tensor | None = None, add: bool = False) -> Tensor:
    if out is None:
        return ops.linear(a, b.t())
    return ops.tiled_linear(a, b.t(), None, out if add else None, out=out)


def _by_torch(a: Tensor, b: Tensor, out: Tensor | None = None, add: bool = False) -> Tensor:
    if out is None:
        return a @ b
    return out.addmm_(a, b) if add else torch.mm(a, b, out=out)


def _of_input(grads: Sequence[Tensor], tiles: Tiles, multiply: Callable[..., Tensor]) -> Tensor:
    """``[m, K]``: for each column of tiles the sum of ``[m, N_o]`` gradients times its tiles."""
    dx = grads[0].new_empty(len(grads[0]), sum(_widths(tiles)))
    for place, column in zip(dx.split(_widths(tiles), 1), zip(*tiles)):
        for o, (g, tile) in enumerate(zip(grads, column)):
            multiply(g, tile, out=place, add=o > 0)
    return dx


def _of_input_recorded(
    grads: Sequence[Tensor], tiles: Tiles, multiply: Callable[..., Tensor]
) -> Tensor:
    """The same by operations that autograd records and vmap maps: nothing is written to a place."""
    shares = [[multiply(g, tile) for g, tile in zip(grads, column)] for column in zip(*tiles)]
    return torch.cat([torch.stack(of_column).sum(0) for of_column in shares], 1)


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
