"""Promises that are not kept: dtypes, refusals, gradients."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from accel import op_builder
from accel.contracts import LINEAR
from accel.contracts.tiled_mlp import tiles
from accel.op_builder import Impl, Request
from accel.refusal import Refusal
from accel_conformance.faults.planting import Formula, Kernel, fault

_asked = itertools.count()


@fault("works", "*/float64/*")
def dtype_listed_and_not_served(kernel: Kernel) -> Kernel:
    def faulty(x: Tensor, *rest: Any) -> Tensor:
        if x.dtype is torch.float64:
            raise RuntimeError("no kernel for float64")
        return kernel(x, *rest)

    return faulty


@fault("serves", "builders/*/serves", role="reasons")
def refuses_everything(impl: Impl, request: Request) -> list[Refusal]:
    return [Refusal("processor", "another processor", "this one")]


@fault("reasons", "builders/*/reasons", also="works", role="reasons")
def changes_its_mind(impl: Impl, request: Request) -> list[Refusal]:
    return refuses_everything(impl, request) if next(_asked) % 2 else []


@fault("reasons", "builders/*/reasons", also="works", role="reasons")
def answers_no_for_why(impl: Impl, request: Request) -> Any:
    """Whether, where why was asked."""
    return False


@fault("gradient", "gradients/*", role="backward")
def bias_summed_over_columns(right: Formula) -> Formula:
    """The right number of sums, of neighbours in a row instead of in a column."""

    def backward(grad: Tensor, needs: Any, x: Tensor, w: Tensor, b: Any, act: Any, out: Any) -> Any:
        dx, dw, db, *rest = right(grad, needs, x, w, b, act, out)
        if db is not None and act is None:
            db = grad.reshape(db.numel(), -1).sum(1).to(db.dtype)
        return dx, dw, db, *rest

    return backward


@fault("gradient", "gradients/*/act_*", "gradients/*/out_bf16", role="backward")
def slope_forgotten(right: Formula) -> Formula:
    return lambda grad, needs, x, w, b, act, out: right(grad, needs, x, w, b, None, out)


@fault("gradient", "gradients/*", op="embedding", role="backward")
def repeated_ids_overwritten(right: Formula) -> Formula:
    """The gradient of a row of the table is that of one of its uses, where it is their sum."""

    def backward(grad: Tensor, needs: Any, ids: Tensor, w: Tensor) -> Any:
        dw = torch.zeros_like(w)
        dw[ids.reshape(-1)] = grad.reshape(ids.numel(), w.shape[1])
        return None, dw

    return backward


@fault("gradient", "gradients/*", op="logprob", role="backward")
def entropy_without_gradient(right: Formula) -> Formula:
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


@fault("gradient", "gradients/*")
def own_gradient_disagrees(kernel: Kernel) -> Kernel:
    """A gradient that the kernel brings, with the result for the gradient that reaches it."""

    def backward(grad: Tensor, needs: Any, *args: Any, kept: Any) -> Any:
        return LINEAR.backward(kept[0], needs, *args)

    return op_builder.Kernel(kernel, lambda *args: (result := kernel(*args), (result,), backward))


@fault("gradient", "gradients/*/batched", role="backward")
def last_batch_only(right: Formula) -> Formula:
    """A tiled backward that overwrites the weight's gradient where it should add to it."""

    def backward(grad: Tensor, needs: Any, x: Tensor, *rest: Any) -> Any:
        gradients = list(right(grad, needs, x, *rest))
        if x.dim() > 2:
            gradients[1] = right(grad[-1], needs, x[-1], *rest)[1]
        return tuple(gradients)

    return backward
