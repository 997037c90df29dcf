"""A linear layer for ZeRO stage 3: between forward and backward it keeps nothing of its weight.

torch's linear has autograd keep a view of the weight, or under autocast a cast of it, and either
keeps bytes alive that sharding has meant to free. Here the Parameter itself is kept, and read again
in the backward, when sharding has brought its values back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from accel import ops
from accel.contracts import LINEAR
from accel.errors import OpArgumentError
from accel.layers.gather import gathered
from accel.layers.linear import Linear
from accel.ops.gradient import no_autocast


class LinearFunctionForZeroStage3(torch.autograd.Function):
    """``input @ weight.T + bias`` by whatever serves ``linear``; see :func:`zero3_linear_wrap`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, *bias = inputs
        ctx.save_for_backward(input, weight)
        ctx.computed_in = output.dtype  # autocast's, if it was on
        ctx.bias_dtype = bias[0].dtype if bias and bias[0] is not None else None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The contract's formula in the dtype of the forward, whatever autocast says by now."""
        input, weight = ctx.saved_tensors
        needs = (*ctx.needs_input_grad, False)[:3]  # without a bias there may be two
        read = weight if needs[0] else None
        with gathered(read), no_autocast(grad.device.type):
            x = input.to(ctx.computed_in)
            w = weight if read is None else weight.to(ctx.computed_in)
            dx, dw, db, *_ = LINEAR.backward(grad, needs, x, w, None, None, None)
        found = zip((dx, dw, db), (input.dtype, weight.dtype, ctx.bias_dtype))
        grads = [None if g is None else g.to(dtype) for g, dtype in found]
        return tuple(grads[: len(ctx.needs_input_grad)])


def zero3_linear_wrap(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias``, in ``torch.nn.functional.linear``'s place.

    input ``[..., in]``, weight ``[out, in]``, bias ``[out]``; returns a fresh tensor
    ``[..., out]``. The weight is kept for the backward as the object it is and cast again there; a
    weight that is away is gathered (:mod:`accel.layers.gather`) and released. Differentiable as
    often as asked, and under ``torch.func``. OpArgumentError where the arguments do not fit.
    """
    function: Any = LinearFunctionForZeroStage3
    with gathered(weight, bias):  # around apply, which notes what shape a gradient must have
        return function.apply(input, weight, bias)  # type: ignore[no-any-return]


class LinearModuleForZeroStage3(Linear):
    """:class:`Linear`, without an activation, over :func:`zero3_linear_wrap`."""

    takes_partial: ClassVar[bool] = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)

    @classmethod
    def from_linear(cls, module: nn.Linear, **options: Any) -> Linear:
        """:meth:`Linear.from_linear`; OpArgumentError for one with an ``act``."""
        if getattr(module, "act", None) is not None:
            raise OpArgumentError(f"{cls.__name__}: has no activation; found act={module.act!r}")
        return super().from_linear(module, **options)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return zero3_linear_wrap(x, self.weight, self.bias)


def autocast_custom_fwd(
    fwd: Callable[..., Any] | None = None, *, cast_inputs: torch.dtype | None = None
) -> Callable[..., Any]:
    """:func:`torch.amp.custom_fwd` for the device of the tensors a ``forward(ctx, ...)`` is given,
    seen at each call; nothing where that device has no autocast. TypeError if it is given none."""
    if fwd is None:
        return functools.partial(autocast_custom_fwd, cast_inputs=cast_inputs)

    @functools.wraps(fwd)
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        ctx._device_type = _device_type((*args, *kwargs.values()))
        if ctx._device_type is None:
            raise TypeError(f"{fwd.__qualname__}: autocast belongs to a device; found no tensor")
        if not torch.amp.is_autocast_available(ctx._device_type):
            return fwd(ctx, *args, **kwargs)
        cast = torch.amp.custom_fwd(fwd, device_type=ctx._device_type, cast_inputs=cast_inputs)
        return cast(ctx, *args, **kwargs)

    return forward


def autocast_custom_bwd(bwd: Callable[..., Any]) -> Callable[..., Any]:
    """:func:`torch.amp.custom_bwd` for the device of :func:`autocast_custom_fwd`'s tensors: the
    ``backward(ctx, ...)`` runs under the autocast state of the forward."""

    @functools.wraps(bwd)
    def backward(ctx: Any, *grads: Any) -> Any:
        if not torch.amp.is_autocast_available(ctx._device_type):
            return bwd(ctx, *grads)
        return torch.amp.custom_bwd(bwd, device_type=ctx._device_type)(ctx, *grads)

    return backward


def _device_type(args: tuple[Any, ...]) -> str | None:
    return next((a.device.type for a in args if isinstance(a, Tensor)), None)


def print_rank_0(message: object, debug: bool = False, force: bool = False) -> None:
    """Print on the first process of the group, or without one, if ``debug`` or ``force``."""
    if (debug or force) and _rank() == 0:
        print(message)


def _rank() -> int:
    group = torch.distributed
    return group.get_rank() if group.is_available() and group.is_initialized() else 0
