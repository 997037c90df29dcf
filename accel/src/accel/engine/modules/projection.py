"""Linear projections: torch's, transformers' Conv1D (weight ``[in, out]``), those of experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from accel import ops
from accel.contracts.checks import WIDE
from accel.engine.call import current
from accel.engine.forward import Forward, installed
from accel.layers.hooks import has_hooks

# Bits of a number in a quantised copy of a projection's weight, at least; and of the head's, whose
# rounding no later layer evens out.
FEWEST, OF_THE_HEAD = 4, 8

_QUICK = 1.702


class Projection(Forward):
    """A projection, or one with something beside it."""

    def bare(self) -> Linear | None:
        """The projection whose results this has in this call, bit for bit, if there is one and its
        weight may be read from outside."""
        raise NotImplementedError(f"{type(self).__name__} must say what it comes to")


class Linear(Projection):
    """``x @ weight.T + bias``, by the weight's copy where the call has quantised ones.

    ``transposed``  the module keeps the weight as ``[in, out]``
    ``least_bits``  of how many bits a copy is at least; None: there is none of this weight
    """

    def __init__(
        self, module: nn.Module, transposed: bool = False, least_bits: int | None = None
    ) -> None:
        super().__init__(module)
        self.transposed = transposed
        self.least_bits = least_bits

    def __call__(
        self, x: Tensor, act: str | None = None, out_dtype: torch.dtype | None = None
    ) -> Tensor:
        copies = current().quantized
        if copies is not None and self.least_bits is not None:
            return copies.product(self, x, act, out_dtype)
        return ops.linear(x, self.weight, self.bias, act=act, out_dtype=out_dtype)

    def bare(self) -> Linear | None:
        return self

    @property
    def weight(self) -> Tensor:
        """``[out, in]``, a view where the module keeps it the other way."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.t() if self.transposed else weight

    @property
    def bias(self) -> Tensor | None:
        return self.module.bias  # type: ignore[return-value]


class Stacked:
    """The projections of all experts, in one parameter ``[E, out, in]``; of rows that are in the
    order of their experts, each by its own. By copies as a :class:`Linear`."""

    def __init__(self, module: nn.Module, name: str, least_bits: int | None = None) -> None:
        self.module = module
        self.name = name
        self.least_bits = least_bits

    def __call__(self, x: Tensor, ends: Tensor, out_dtype: torch.dtype) -> Tensor:
        copies = current().quantized
        if copies is not None and self.least_bits is not None:
            return copies.products(self, x, ends, out_dtype)
        return ops.grouped_linear(x, self._stack(), ends, out_dtype=out_dtype)

    @property
    def weight(self) -> Tensor:
        """``[E * out, in]``"""
        stack = self._stack()
        return stack.flatten(0, 1) if stack.dim() == 3 else stack  # its values are away

    def _stack(self) -> Tensor:
        return getattr(self.module, self.name)  # type: ignore[no-any-return]


class Activation(Forward):
    """An activation on its own: fp32, rounded once, with a slope however far from zero."""

    def __init__(self, module: nn.Module, act: str) -> None:
        super().__init__(module)
        self.act = act

    def __call__(self, x: Tensor) -> Tensor:
        return ops.bias_act(x, act=self.act)


class QuickGelu(Forward):
    """``x sigmoid(1.702 x)`` (Hendrycks and Gimpel 2016), as silu of another scale; never fused."""

    def __call__(self, x: Tensor) -> Tensor:
        y = ops.bias_act(x.to(WIDE[x.dtype]) * _QUICK, act="silu") / _QUICK
        return y.to(x.dtype)


def activation(module: nn.Module, act: str) -> Forward:
    """The activation of that name."""
    return QuickGelu(module) if act == "quick_gelu" else Activation(module, act)


def fusable(module: nn.Module) -> str | None:
    """The activation's name, if no hook expects the module to be called."""
    found = installed(module)
    return found.act if isinstance(found, Activation) and not has_hooks(module) else None


def plain(module: nn.Module) -> Linear | None:
    """The projection that the module comes to in this call, if its parent may read the weight: no
    hooks, and nothing beside it that acts."""
    found = installed(module)
    return found.bare() if isinstance(found, Projection) and not has_hooks(module) else None


def activated(x: Tensor, module: nn.Module, act: nn.Module) -> Tensor:
    """``act(module(x))``, in one op where nothing watches them."""
    linear, name = plain(module), fusable(act)
    return linear(x, name) if linear and name else act(module(x))


def gated(x: Tensor, gate: nn.Module, up: nn.Module, act: nn.Module) -> Tensor:
    """``act(gate(x)) * up(x)``, in one op where nothing watches them and weights are no copies."""
    if current().quantized is not None:
        return activated(x, gate, act) * up(x)  # type: ignore[no-any-return]
    first, second, name = plain(gate), plain(up), fusable(act)
    if first and second and name and not first.transposed and not second.transposed:
        return ops.gated_linear(x, first.weight, second.weight, first.bias, second.bias, act=name)
    return act(gate(x)) * up(x)  # type: ignore[no-any-return]
