"""The transformer layer, written once over a set of pieces: the references make of it the meaning
of the op, eager torch's kernels the implementation, the public ops the module.

Vaswani et al. 2017, with the norms before each half (Xiong et al. 2020) or after its sum:

    pre-norm    a = x + dropout(attention(norm(x)))          y = a + dropout(mlp(norm(a)))
    post-norm   a = norm(x + dropout(attention(x)))          y = norm(a + dropout(mlp(a)))

``attn_norm`` is the norm of a, ``norm`` that of x or of y: DeepSpeed's names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from accel.contracts.attention import ATTENTION
from accel.contracts.bias_act import BIAS_ACT
from accel.contracts.contract import Contract
from accel.contracts.dropout_add import DROPOUT_ADD
from accel.contracts.layer_norm import LAYER_NORM
from accel.contracts.linear import LINEAR

# The layer's parameters, in the order of the op and of DeepSpeed's layer.
WEIGHTS = (
    "qkv_w", "qkv_b", "out_w", "out_b", "attn_norm_w", "attn_norm_b",
    "up_w", "up_b", "down_w", "down_b", "norm_w", "norm_b",
)  # fmt: skip


class Pieces:
    """What the layer is made of. ``run(contract, args)`` serves an op, all of its arguments
    given."""

    def __init__(self, run: Callable[[Contract, tuple[Any, ...]], Tensor]) -> None:
        self._run = run

    def _call(self, contract: Contract, *tensors: Tensor | None, **options: Any) -> Tensor:
        return self._run(contract, contract.bind(tensors, options))

    def layer_norm(self, x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
        return self._call(LAYER_NORM, x, w, b, eps=eps)

    def linear(self, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return self._call(LINEAR, x, w, b)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, spans: Tensor, mask: Tensor | None,
        seed: Tensor | None, causal: bool, dropout: float,
    ) -> Tensor:  # fmt: skip
        options = {"mask": mask, "seed": seed, "causal": causal, "dropout": dropout}
        return self._call(ATTENTION, q, k, v, spans, **options)

    def mlp(
        self, x: Tensor, up_w: Tensor, up_b: Tensor, down_w: Tensor, down_b: Tensor, act: str
    ) -> Tensor:
        return self.act_linear(self.linear(x, up_w, up_b), down_w, down_b, act)

    def act_linear(self, x: Tensor, w: Tensor, b: Tensor, act: str) -> Tensor:
        """``linear(act(x), w, b)``"""
        return self.linear(self._call(BIAS_ACT, x, act=act), w, b)

    def dropout_add(
        self, x: Tensor, residual: Tensor, seed: Tensor | None, rows: Tensor | None, p: float
    ) -> Tensor:
        return self._call(DROPOUT_ADD, x, residual, seed=seed, rows=rows, p=p)


def layer(
    pieces: Pieces, x: Tensor, weights: Sequence[Tensor], mask: Tensor | None, seed: Tensor | None,
    heads: int, pre_norm: bool, causal: bool, act: str, eps: float, attn_dropout: float,
    hidden_dropout: float,
) -> Tensor:  # fmt: skip
    """The layer of x ``[B, S, H]``; ``weights`` are those of :data:`WEIGHTS`."""
    qkv_w, qkv_b, out_w, out_b, attn_norm_w, attn_norm_b = weights[:6]
    up_w, up_b, down_w, down_b, norm_w, norm_b = weights[6:]
    seeds = (None, None, None) if seed is None else seed.unbind()
    rows = None if hidden_dropout == 0 else numbered(x)
    # torch.matmul takes another way for strided rows that record gradients, to other bits.
    x = x.contiguous()

    h = pieces.layer_norm(x, norm_w, norm_b, eps) if pre_norm else x
    h = _attended(
        pieces, pieces.linear(h, qkv_w, qkv_b), mask, seeds[0], heads, causal, attn_dropout
    )
    a = pieces.dropout_add(pieces.linear(h, out_w, out_b), x, seeds[1], rows, hidden_dropout)
    h = normed = pieces.layer_norm(a, attn_norm_w, attn_norm_b, eps)
    h = pieces.mlp(h, up_w, up_b, down_w, down_b, act)
    y = pieces.dropout_add(h, a if pre_norm else normed, seeds[2], rows, hidden_dropout)
    return y if pre_norm else pieces.layer_norm(y, norm_w, norm_b, eps)


def numbered(x: Tensor) -> Tensor:
    """Each row's number for the random bits, of x ``[B, S, H]``: that of its sequence and its
    place in it, whatever S is, so that padding at the end moves no bit."""
    batch, length = x.shape[:2]
    sequence = torch.arange(batch, device=x.device).unsqueeze(1) << 32
    return sequence + torch.arange(length, device=x.device)


def _attended(
    pieces: Pieces, qkv: Tensor, mask: Tensor | None, seed: Tensor | None, heads: int,
    causal: bool, dropout: float,
) -> Tensor:  # fmt: skip
    """Attention within each sequence of the projections ``[B, S, 3H]``; ``[B, S, H]``."""
    batch, length, width = qkv.shape
    size = width // (3 * heads)
    q, k, v = qkv.reshape(batch * length, 3, heads, size).unbind(1)
    starts = torch.arange(batch, device=qkv.device) * length
    lengths = torch.full_like(starts, length)
    spans = torch.stack((starts, lengths, starts, lengths), 1)
    context = pieces.attention(q, k, v, spans, mask, seed, causal, dropout)
    return context.reshape(batch, length, heads * size)


# One gradient for each argument of a piece, or None; called with its result's and with which
# arguments need one.
Backward = Callable[[Tensor, tuple[bool, ...]], Sequence[Any]]


def _recorded(contract: Contract, args: tuple[Any, ...]) -> tuple[Tensor, Backward]:
    """An op's reference, and its own formula."""

    def backward(grad: Tensor, needs: tuple[bool, ...]) -> Sequence[Any]:
        return contract.backward(grad, needs, *args)

    return contract.reference(*args), backward


class Tape(Pieces):
    """Pieces as ``record(contract, args)`` runs them, the references unless it is given, and the
    way back through each."""

    def __init__(
        self,
        record: Callable[[Contract, tuple[Any, ...]], tuple[Tensor, Backward]] = _recorded,
    ) -> None:
        super().__init__(self._run_and_keep)
        self._record = record
        self._calls: list[tuple[tuple[Any, ...], Backward]] = []

    def _run_and_keep(self, contract: Contract, args: tuple[Any, ...]) -> Tensor:
        result, backward = self._record(contract, args)
        self._calls.append((args, backward))
        return result

    def back(self, grad: Tensor, *, frozen: Sequence[bool] = ()) -> Sequence[Any]:
        """The gradients of the last call not yet gone back through: one for each argument, None
        for those ``frozen`` after the first and for those without."""
        args, backward = self._calls.pop()
        needs = [isinstance(arg, Tensor) and arg.is_floating_point() for arg in args]
        for i, is_frozen in enumerate(frozen, 1):
            needs[i] = needs[i] and not is_frozen
        return backward(grad, tuple(needs))
