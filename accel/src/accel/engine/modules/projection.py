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

    @property
    def width(self) -> int:
        """Its output features."""
        raise NotImplementedError(f"{type(self).__name__} must say how wide its results are")


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
        self, x: Tensor, act: str | None = None, out_dtype: torch.dtype | None = None,
        rows: slice | None = None,
    ) -> Tensor:  # fmt: skip
        """``rows``: of the weight, whose output features are wanted; None: all."""
        if rows is not None:
            return self.narrowed(rows)(x, act, out_dtype)
        copies = current().quantized
        if copies is not None and self.least_bits is not None:
            return copies.product(self, x, act, out_dtype)
        return ops.linear(x, self.weight, self.bias, act=act, out_dtype=out_dtype)

    def bare(self) -> Linear | None:
        return self

    def narrowed(self, rows: slice | None = None, columns: slice | None = None) -> Linear:
        """With some of the weight's rows, the output features, or, without the bias, some of its
        columns, to be added to what the others make; itself if with all."""
        return self if rows is columns is None else _Narrowed(self, rows, columns)

    @property
    def width(self) -> int:
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.shape[1 if self.transposed else 0]  # known where the values are away

    @property
    def weight(self) -> Tensor:
        """``[out, in]``, a view where the module keeps it the other way."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.t() if self.transposed else weight

    @property
    def bias(self) -> Tensor | None:
        return self.module.bias  # type: ignore[return-value]


class _Narrowed(Linear):
    """A projection by a view of another's weight."""

    def __init__(self, whole: Linear, rows: slice | None, columns: slice | None) -> None:
        super().__init__(whole.module, whole.transposed)
        self._whole = whole
        self._rows = rows
        self._columns = columns

    @property
    def weight(self) -> Tensor:
        weight = self._whole.weight
        return weight[self._rows] if self._columns is None else weight[:, self._columns]

    @property
    def bias(self) -> Tensor | None:
        bias = None if self._columns is not None else self._whole.bias
        return None if bias is None else bias[self._rows]


class Stacked:
    """The projections of all experts, in one parameter ``[E, out, in]``; of rows that are in the
    order of their experts, each by its own. By copies as a :class:`Linear`."""

    def __init__(self, module: nn.Module, name: str, least_bits: int | None = None) -> None:
        self.module = module
        self.name = name
        self.least_bits = least_bits

    def __call__(
        self, x: Tensor, ends: Tensor, out_dtype: torch.dtype, rows: slice | None = None
    ) -> Tensor:
        """``rows``: of each expert's weight, whose output features are wanted; None: all."""
        if rows is not None:
            return ops.grouped_linear(x, self._stack()[:, rows], ends, out_dtype=out_dtype)
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


def width(module: nn.Module) -> int:
    """How many output features the projection in the module's place has."""
    found = installed(module)
    assert isinstance(found, Projection)
    return found.width


def activated(x: Tensor, module: nn.Module, act: nn.Module, rows: slice | None = None) -> Tensor:
    """``act(module(x))``, in one op where nothing watches them; of some of the module's ``rows``,
    where only those are wanted and nothing watches."""
    linear, name = plain(module), fusable(act)
    return linear(x, name, rows=rows) if linear and name else act(part(module, x, rows))


def gated(
    x: Tensor, gate: nn.Module, up: nn.Module, act: nn.Module, rows: slice | None = None
) -> Tensor:
    """``act(gate(x)) * up(x)``, in one op where nothing watches them and weights are no copies;
    of ``rows`` as :func:`activated`."""
    if current().quantized is not None:
        return activated(x, gate, act) * up(x)  # type: ignore[no-any-return]
    first, second, name = plain(gate), plain(up), fusable(act)
    if first and second and name and not first.transposed and not second.transposed:
        one, two = first.narrowed(rows), second.narrowed(rows)
        return ops.gated_linear(x, one.weight, two.weight, one.bias, two.bias, act=name)
    return act(part(gate, x, rows)) * part(up, x, rows)  # type: ignore[no-any-return]


def part(module: nn.Module, x: Tensor, rows: slice | None) -> Tensor:
    """Those output features of a projection. A module that somebody watches makes all, and some
    are taken."""
    if rows is None:
        return module(x)  # type: ignore[no-any-return]
    return module(x)[..., rows] if has_hooks(module) else module(x, rows=rows)  # type: ignore[no-any-return]
