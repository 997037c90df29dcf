"""Wrong gradients. Of a formula: incoming gradient, which arguments need one, the op's schema's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from accel.contracts.tiled_mlp import tiles
from accel_conformance.faults.planting import Formula, faults_of

fault = faults_of("gradient")


@fault("gradient", "gradients/*", role="backward")
def bias_summed_over_columns(right: Formula) -> Formula:
    """The bias's gradient is of sums along rows, where it is of sums along columns."""

    def backward(grad: Tensor, needs: Any, x: Tensor, w: Tensor, b: Any, act: Any, out: Any) -> Any:
        dx, dw, db, *rest = right(grad, needs, x, w, b, act, out)
        if db is not None and act is None:
            db = grad.reshape(db.numel(), -1).sum(1).to(db.dtype)
        return dx, dw, db, *rest

    return backward


@fault("gradient", "gradients/*/act_*", "gradients/*/out_bf16", role="backward")
def slope_forgotten(right: Formula) -> Formula:
    """The slope of the activation is left out."""
    return lambda grad, needs, x, w, b, act, out: right(grad, needs, x, w, b, None, out)


@fault("gradient", "gradients/*", op="embedding", role="backward")
def repeated_ids_overwritten(right: Formula) -> Formula:
    """The gradient of a row of the table is that of one of its uses, where it is their sum."""

    def backward(grad: Tensor, needs: Any, ids: Tensor, w: Tensor) -> Any:
        dw = torch.zeros_like(w)
        dw[ids.reshape(-1)] = grad.reshape(ids.numel(), w.shape[1])
        return None, dw

    return backward


@fault("repeatable", "gradients/*", op="embedding", role="backward")
def uses_added_as_they_come(right: Formula) -> Formula:
    """A row of the table takes the gradients of its uses in another order at each call."""
    random = torch.Generator()

    def backward(grad: Tensor, needs: Any, ids: Tensor, w: Tensor) -> Any:
        flat, order = ids.reshape(-1), torch.randperm(ids.numel(), generator=random)
        return right(grad.reshape(len(flat), w.shape[1])[order], needs, flat[order], w)

    return backward


@fault("gradient", "gradients/*", op="logprob", role="backward")
def entropy_without_gradient(right: Formula) -> Formula:
    """Nothing flows back from the entropy."""
    return lambda grads, *rest, **results: right((grads[0], None), *rest, **results)


@fault("gradient", "gradients/*", op="tiled_mlp", role="backward")
def last_tile_only(right: Formula) -> Formula:
    """The weights' gradients are those of the last tile, where they are a sum over all."""

    def backward(grad: Tensor, needs: Any, x: Tensor, *rest: Any) -> Any:
        gradients = list(right(grad, needs, x, *rest))
        m = math.prod(x.shape[:-1])
        *others, last = tiles(m, rest[-1])
        if others:
            dy, rows = (t.reshape(m, t.shape[-1])[last] for t in (grad, x))
            gradients[1:4] = right(dy, needs, rows, *rest)[1:4]
        return tuple(gradients)

    return backward


@fault("gradient", "gradients/*/batched", role="backward")
def last_batch_only(right: Formula) -> Formula:
    """A tiled backward that overwrites the weight's gradient where it should add to it."""

    def backward(grad: Tensor, needs: Any, x: Tensor, *rest: Any) -> Any:
        gradients = list(right(grad, needs, x, *rest))
        if x.dim() > 2:
            gradients[1] = right(grad[-1], needs, x[-1], *rest)[1]
        return tuple(gradients)

    return backward


def replaced(right: Formula, place: int, wrong: Any) -> Formula:
    """``right`` with one of its gradients, where there is one, replaced by what ``wrong`` makes of
    it and of the arguments."""

    def backward(grad: Any, needs: Any, *args: Any, **results: Any) -> Any:
        gradients = list(right(grad, needs, *args, **results))
        if gradients[place] is not None:
            gradients[place] = wrong(gradients[place], grad, *args)
        return tuple(gradients)

    return backward


@fault("gradient", "gradients/*", role="backward")
def weight_added_twice(right: Formula) -> Formula:
    """The weight's gradient is added to twice."""
    return replaced(right, 1, lambda dw, *_: dw + dw)


@fault("gradient", "gradients/*", role="backward")
def frozen_input_forgotten(right: Formula) -> Formula:
    """Where x needs no gradient the weight's is zero."""

    def backward(grad: Tensor, needs: Any, x: Tensor, w: Tensor, *rest: Any) -> Any:
        dx, dw, *others = right(grad, needs, x, w, *rest)
        return dx, dw if needs[0] or dw is None else torch.zeros_like(dw), *others

    return backward


@fault("gradient", "gradients/*", role="backward")
def frozen_bias_forgotten(right: Formula) -> Formula:
    """Where the bias needs no gradient x's is added to twice."""

    def backward(grad: Tensor, needs: Any, *args: Any) -> Any:
        dx, *others = right(grad, needs, *args)
        return dx if dx is None or needs[2] else dx + dx, *others

    return backward


@fault("gradient", "gradients/*/layout_transposed", "gradients/*/layout_sliced",
       role="backward")  # fmt: skip
def strides_of_gradient_ignored(right: Formula) -> Formula:
    """The incoming gradient is read as if its rows lay one behind the other."""

    def backward(grad: Tensor, *args: Any) -> Any:
        if not grad.is_contiguous() and 0 not in grad.stride():
            plain = torch.empty(grad.shape, device="meta").stride()
            grad = grad.as_strided(grad.shape, plain)
        return right(grad, *args)

    return backward


@fault("gradient", "gradients/*/bfloat16/many_rows", "gradients/*/float16/many_rows",
       role="backward")  # fmt: skip
def weight_summed_in_half(right: Formula) -> Formula:
    """The weight's gradient is added up in half precision, row by row."""

    def wrong(dw: Tensor, grad: Tensor, x: Tensor, *rest: Any) -> Tensor:
        if dw.dtype not in (torch.bfloat16, torch.float16) or x.dim() != 2 or len(x) < 200:
            return dw
        total = torch.zeros_like(dw)
        for dy, row in zip(grad.to(dw.dtype), x):
            total += torch.outer(dy, row)
        return total

    return replaced(right, 1, wrong)


@fault("gradient", "gradients/*/many_rows", role="backward")
def last_block_of_rows(right: Formula) -> Formula:
    """Of blocks of 128 rows each overwrites the weight's gradient of the one before."""

    def wrong(dw: Tensor, grad: Tensor, x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        if x.dim() != 2 or len(x) <= 128:
            return dw
        last = slice((len(x) - 1) // 128 * 128, None)
        return right(grad[last], (False, True, False), x[last], w, *rest)[1]  # type: ignore[no-any-return]

    return replaced(right, 1, wrong)


@fault("gradient", "gradients/*", op="rms_norm", role="backward")
def through_the_numerator_alone(right: Formula) -> Formula:
    """x's gradient leaves out that the root of the mean of squares depends on x."""

    def wrong(dx: Tensor, grad: Tensor, x: Tensor, w: Tensor | None, eps: float) -> Tensor:
        wide = x.double()
        scale = 1 / (wide.square().mean(-1, keepdim=True) + eps).sqrt()
        return (grad * scale * (1 if w is None else w)).to(dx.dtype)

    return replaced(right, 0, wrong)


@fault("gradient", "gradients/*", op="layer_norm", role="backward")
def weight_by_x(right: Formula) -> Formula:
    """The weight's gradient is summed over x, not over the normalised x."""

    def wrong(dw: Tensor, grad: Tensor, x: Tensor, *rest: Any) -> Tensor:
        return (grad * x).sum_to_size(dw.shape).to(dw.dtype)

    return replaced(right, 1, wrong)


@fault("gradient", "gradients/*", op="softmax", role="backward")
def softmax_without_its_sum(right: Formula) -> Formula:
    """The gradient of each score leaves out that all probabilities share one sum."""

    def wrong(dx: Tensor, grad: Tensor, x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        z = x.double() * scale + (0 if mask is None else mask)
        return (z.softmax(-1).nan_to_num(0) * grad * scale).to(dx.dtype)

    return replaced(right, 0, wrong)


@fault("gradient", "gradients/*", op="dropout_add", role="backward")
def dropped_anew(right: Formula) -> Formula:
    """The gradient is of other elements dropped than the result's."""

    def backward(
        grad: Tensor, needs: Any, x: Any, residual: Any, b: Any, seed: Any, *rest: Any
    ) -> Any:
        other = None if seed is None else seed + 1
        return right(grad, needs, x, residual, b, other, *rest)

    return backward


@fault("gradient", "gradients/*", op="dropout_add", role="backward")
def residual_dropped_too(right: Formula) -> Formula:
    """The residual's gradient is that of x."""

    def backward(grad: Tensor, needs: Any, x: Tensor, residual: Any, *rest: Any) -> Any:
        dx, dresidual, *others = right(grad, (True, *needs[1:]), x, residual, *rest)
        return dx if needs[0] else None, None if dresidual is None else dx, *others

    return backward


@fault("gradient", "gradients/*", op="rotary", role="backward")
def turned_forward(right: Formula) -> Formula:
    """x's gradient is turned as x is, not back."""

    def backward(grad: Tensor, needs: Any, x: Tensor, cos: Tensor, sin: Tensor, *rest: Any) -> Any:
        _, dcos, dsin, *_ = right(grad, needs, x, cos, sin, *rest)
        dx, *_ = right(grad, needs, x, cos, -sin, *rest)
        return dx, dcos, dsin, None

    return backward


@fault("gradient", "gradients/*", op="attention", role="backward")
def last_head_of_the_group(right: Formula) -> Formula:
    """Of heads that share keys the last one overwrites the others' share of their gradient."""

    def wrong(dk: Tensor, grad: Tensor, q: Tensor, k: Tensor, *rest: Any) -> Tensor:
        times = q.shape[1] // k.shape[1]
        if times < 2 or not k.numel() or rest[2] is not None or rest[3] is not None or rest[-1]:
            return dk
        last = slice(times - 1, None, times)
        needs = (False, True, *(False,) * 10)
        return right(grad[:, last], needs, q[:, last], k, *rest)[1]  # type: ignore[no-any-return]

    return replaced(right, 1, wrong)


@fault("gradient", "gradients/*/softcap", "gradients/*/everything", op="attention",
       role="backward")  # fmt: skip
def slope_of_softcap_forgotten(right: Formula) -> Formula:
    """Gradients are those of scores that are not capped."""

    def backward(grad: Tensor, needs: Any, *args: Any) -> Any:
        *others, softcap, dropout = args
        return right(grad, needs, *others, None if softcap is None else 1e9, dropout)

    return backward


@fault("gradient", "gradients/*", op="logprob", role="backward")
def label_not_subtracted(right: Formula) -> Formula:
    """The gradient is as if the log-probability were of the next id."""

    def backward(grad: Any, needs: Any, x: Tensor, ids: Tensor, w: Any, *rest: Any, **known: Any
    ) -> Any:  # fmt: skip
        count = x.shape[-1] if w is None else w.shape[0]
        return right(grad, needs, x, (ids + 1) % max(count, 1), w, *rest, **known)

    return backward


@fault("gradient", "gradients/*", op="logprob", role="backward")
def gradient_not_cooled(right: Formula) -> Formula:
    """x's gradient is not divided by the temperature."""

    def wrong(dx: Tensor, grad: Any, *args: Any) -> Tensor:
        return (dx * args[6]).to(dx.dtype)

    return replaced(right, 0, wrong)


@fault("gradient", "gradients/*", op="grouped_linear", role="backward")
def weights_of_the_next_expert(right: Formula) -> Formula:
    """Each expert has the gradient of the one before it."""
    return replaced(right, 1, lambda dw, *_: dw.roll(1, 0))
