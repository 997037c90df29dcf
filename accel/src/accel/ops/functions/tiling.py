"""Products over tiles: of a weight, of the vocabulary, of the tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from accel.contracts import LOGPROB, TILED_LINEAR, TILED_MLP
from accel.contracts.tiled_linear import check_out
from accel.ops import door

_logprob: Callable[..., tuple[Tensor, Tensor]] = door.of(LOGPROB)
_tiled_linear: Callable[..., Tensor] = door.of(TILED_LINEAR)
_tiled_mlp: Callable[..., Tensor] = door.of(TILED_MLP)


def tiled_linear(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    partial: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``partial + x @ w.T + b`` in fp32, rounded once: one tile of a product whose sum is split.

    x ``[..., K]``, w ``[N, K]``, b ``[N]`` of one dtype; partial ``[..., N]`` of that dtype or of
    fp32 (fp64 beside fp64), kept for no backward. Returns ``[..., N]`` in ``out_dtype`` (default
    x's). See :func:`linear`.

    With ``out`` ``[..., N]``, of any dtype that the op could return and rows at equal distances,
    the result is written there and returned, by a shape-invariant implementation with the same
    bits. It may be ``partial`` itself, and share memory with nothing else that is read. As torch's
    own ``out``, it is not for tensors that autograd records.
    """
    if out is None:
        return _tiled_linear(x, w, b, partial, out_dtype)
    check_out(x, w, out, out_dtype)
    return door.into(TILED_LINEAR, _tiled_linear, (x, w, b, partial), (out.dtype,), out)


def logprob(
    x: Tensor,
    ids: Tensor,
    w: Tensor | None = None,
    b: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(log-probability of each id, entropy), fp32: a token's value, wherever one is needed.

    Of the logits ``softcap·tanh((x @ w.T + b)·scale / softcap) / temperature``, which are fp32 and
    never held all at once; without w, x ``[..., V]`` is the product. x ``[..., H]``, ids int64
    ``[...]``, w ``[V, H]``, b ``[V]``; both results have the shape of ids.
    """
    return _logprob(x, ids, w, b, scale, softcap, temperature)


def tiled_mlp(
    x: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    w_gate: Tensor | None = None,
    b_up: Tensor | None = None,
    b_down: Tensor | None = None,
    b_gate: Tensor | None = None,
    *,
    act: str = "silu",
    tile_rows: int = 1024,
) -> Tensor:
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` without w_gate, by tiles of rows.

    x ``[..., K]``, w_up and w_gate ``[I, K]``, w_down ``[N, I]``, biases ``[I]``, ``[N]``, ``[I]``;
    returns ``[..., N]``. Of the intermediate ``[rows, I]`` there are ``tile_rows`` rows at a time,
    in the backward too, which computes them again. Each weight has one gradient, summed over the
    tiles in fp32. ``act``: see :func:`linear`.
    """
    return _tiled_mlp(x, w_up, w_down, w_gate, b_up, b_down, b_gate, act, tile_rows)
