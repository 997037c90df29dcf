"""Cross-entropy of a language model's head whose logits never exist all at once.

The gradient of a mean or a sum is known as soon as a token's logits are, so it is taken in the
forward, a block of tokens at a time: three products, like the plain path, where computing the
logits again in the backward would be four (Wijmans et al. 2024 and Liger do alike). A token's value
is ``-ops.logprob``'s, the same bits that an engine samples by and scores with.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from accel import ops
from accel.contracts import LOGPROB
from accel.contracts.checks import WIDE, refuse_nontensor
from accel.contracts.vocabulary import Adjustment
from accel.layers.linear import Linear
from accel.ops.watching import torch_is_watched

# Of fp32 logits held at once. A block passes over the whole gradient of the weight, so it must not
# be small: at a vocabulary of 131072 it is 256 tokens.
BLOCK_BYTES = 1 << 27

REDUCTIONS = ("mean", "sum", "none")


def tiled_cross_entropy(
    x: Tensor,
    w: Tensor,
    targets: Tensor,
    b: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """``F.cross_entropy(softcap·tanh((x @ w.T + b)·scale / softcap), targets)``, in fp32.

    x ``[..., H]``, w ``[V, H]``, targets int64 ``[...]``, b ``[V]``. Returns fp32 (fp64 of fp64):
    a scalar, or targets' shape for ``reduction="none"``, 0 where the target is ``ignore_index``.
    The mean is over the other targets, NaN where there are none. Gradients of w and b are summed in
    fp32 and come as one tensor each. ValueError for an unknown reduction, OpArgumentError for
    tensors that do not fit.
    """
    _require_reduction(reduction)
    refuse_nontensor("tiled_cross_entropy", {"targets": targets}, optional=())
    kept = targets != ignore_index
    ids = targets.where(kept, 0)
    if reduction != "none" and _eager((x, w, b)):
        LOGPROB.check(x, ids, w, b, scale, softcap, 1.0)
        wide = WIDE[x.dtype]
        share = 1 / kept.sum(dtype=wide) if reduction == "mean" else kept.new_ones((), dtype=wide)
        adjust = Adjustment(scale, softcap, 1.0)
        loss: Tensor = _Fused.apply(x, w, b, ids, kept, share, adjust)  # type: ignore[no-untyped-call]
        return loss
    values = -ops.logprob(x, ids, w, b, scale=scale, softcap=softcap)[0]
    values = values.where(kept, 0.0)
    if reduction == "none":
        return values
    return values.sum() / kept.sum() if reduction == "mean" else values.sum()


def _require_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")


def _eager(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether gradients are recorded, by plain autograd: the op's own gradient serves the rest."""
    return (
        torch.is_grad_enabled()
        and not torch_is_watched()
        and not torch._C._is_any_autocast_enabled()
        and any(t is not None and t.requires_grad for t in tensors)
    )


class _Fused(torch.autograd.Function):
    """Value and gradients in one pass. A backward that is itself recorded, or comes a second time,
    takes the op's formula."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, ids: Tensor, kept: Tensor, share: Tensor,
        adjust: Adjustment,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, w, b, ids, kept, share)
        ctx.adjust = adjust
        wide = WIDE[x.dtype]
        flat, at = x.reshape(-1, x.shape[-1]), ids.reshape(-1)
        weights = share.where(kept.reshape(-1), 0.0)
        sums = [
            like.new_zeros(like.shape, dtype=wide) if like is not None and needed else None
            for like, needed in zip((flat, w, b), ctx.needs_input_grad)
        ]
        loss = x.new_zeros((), dtype=wide)
        step = max(BLOCK_BYTES // (4 * max(len(w), 1)), 1)
        for rows in (slice(start, start + step) for start in range(0, len(at), step)):
            loss += _block(flat[rows], w, b, at[rows], weights[rows], adjust, sums, rows)
        dx, dw, db = (None if s is None else s.to(x.dtype) for s in sums)
        ctx.gradients = [None if dx is None else dx.reshape(x.shape), dw, db]
        return loss + 0 * share  # NaN where the mean is over nothing

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found, ctx.gradients = ctx.gradients, None
        if found is None or torch.is_grad_enabled():
            found = _by_formula(ctx, grad)
        else:
            # In place, and no longer held: a second copy of w's gradient would be as large.
            found = [g if g is None else g.mul_(grad) for g in found]
        return *found, None, None, None, None


def _block(
    x: Tensor, w: Tensor, b: Tensor | None, ids: Tensor, weights: Tensor, adjust: Adjustment,
    sums: list[Tensor | None], rows: slice,
) -> Tensor:  # fmt: skip
    """The weighted loss of some tokens, whose gradients are added to the wide ``sums``."""
    dx, dw, db = sums
    z = ops.linear(x, w, b, out_dtype=weights.dtype)
    chosen, _ = ops.logprob(z, ids, scale=adjust.scale, softcap=adjust.softcap)
    adjusted, at, g = adjust(z), ids.unsqueeze(-1), weights.unsqueeze(-1)
    norm = adjusted.gather(-1, at) - chosen.unsqueeze(-1)
    # d(-logprob) = softmax - δ, in the logits' own memory where nothing else needs them.
    dz = (adjusted.sub_(norm) if adjust.softcap is None else adjusted - norm).exp_().mul_(g)
    dz = adjust.backward(dz.scatter_add_(-1, at, -g), adjusted)
    part = dz.to(x.dtype)
    if dx is not None:
        torch.mm(part, w, out=dx[rows]) if dx.dtype is x.dtype else dx[rows].copy_(part @ w)
    if dw is not None:
        dw.addmm_(part.t(), x) if dw.dtype is x.dtype else dw.add_(part.t() @ x)
    if db is not None:
        db += dz.sum(0)
    return -(chosen * weights).sum()


def _by_formula(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    x, w, b, ids, kept, share = ctx.saved_tensors
    adjust: Adjustment = ctx.adjust
    options = (adjust.scale, adjust.softcap, adjust.temperature)
    x_needs, w_needs, b_needs = ctx.needs_input_grad[:3]
    needs = (x_needs, False, w_needs, b_needs)
    results = ops.logprob(
        x, ids, w, b, scale=options[0], softcap=options[1], temperature=options[2]
    )
    incoming = ((-grad * share).where(kept, 0.0), None)
    dx, _, dw, db, *_ = LOGPROB.backward(incoming, needs, x, ids, w, b, *options, results=results)
    return [dx, dw, db]


class TiledCrossEntropy(Linear):
    """A language model's head and its loss in one module: :func:`tiled_cross_entropy` of its own
    weight.

    ``forward(x [..., H], targets [...])``. With ``reduction="none"`` the values are those of the
    tokens: their log-probabilities are the same negated. As one module it is one unit of FSDP2, and
    its weight gets one gradient. ``from_linear`` shares the parameters of a model's own head.
    """

    uses: ClassVar[tuple[str, ...]] = ("linear", "logprob")
    takes_partial: ClassVar[bool] = False

    def __init__(
        self,
        in_features: int,
        vocabulary: int,
        bias: bool = False,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        scale: float = 1.0,
        softcap: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _require_reduction(reduction)
        super().__init__(in_features, vocabulary, bias, device=device, dtype=dtype)
        self.ignore_index, self.reduction = ignore_index, reduction
        self.scale, self.softcap = scale, softcap

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        """The loss of hidden rows x at ``targets``; see :func:`tiled_cross_entropy`."""
        return tiled_cross_entropy(
            x, self.weight, targets, self.bias, ignore_index=self.ignore_index,
            reduction=self.reduction, scale=self.scale, softcap=self.softcap,
        )  # fmt: skip
