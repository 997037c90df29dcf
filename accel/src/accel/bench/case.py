"""Case: an op at a size, the arguments it is given, and how one writes it in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from accel.bench.sizes import COLD, MOST_COPIED, MOST_COPIES, Draw, Size
from accel.contracts import CONTRACTS, Contract, Tolerance

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """One op at one size.

    ``shape``     for people
    ``make``      draws the op's arguments, in its schema's order
    ``plain``     what one writes for it in torch, called with the same arguments, and ``text``,
                  what that is called
    ``variant``   what sets it apart from the op's other cases
    ``product``   its work is products, and with the gradients three times as many
    ``compiled``  torch.compile can make a peer of the contract's reference
    ``frozen``    floating point arguments whose gradient nobody asks
    ``random``    everyone draws numbers of their own, so that results cannot be compared
    ``backward``  forward and backward
    """

    op: str
    size: Size
    shape: str
    make: Callable[[Draw], Arguments]
    plain: Callable[..., Any]
    text: str
    variant: str = ""
    product: bool = True
    compiled: bool = False
    frozen: tuple[str, ...] = ()
    random: bool = False
    backward: bool = False

    @property
    def contract(self) -> Contract:
        return CONTRACTS[self.op]

    @property
    def name(self) -> str:
        """``linear decode``, ``attention (causal) train``: what ``--list`` shows."""
        variant = f" ({self.variant})" if self.variant else ""
        return f"{self.op}{variant} {self.size.name}{', backward' if self.backward else ''}"

    def tolerance(self, dtype: torch.dtype) -> Tolerance:
        return self.contract.tolerance[dtype]

    def with_backward(self) -> Case:
        return replace(self, backward=True)

    def leaves(self, args: Arguments) -> tuple[Arguments, list[Tensor]]:
        """The arguments as autograd's leaves, and those whose gradients are asked."""
        found: list[Tensor] = []

        def leaf(name: str, value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            value = value.detach().clone()
            if name not in self.frozen:
                found.append(value.requires_grad_())
            return value

        return tuple(map(leaf, self.contract.parameters, args)), found


def turns(case: Case, args: Arguments) -> int:
    """How many sets of arguments to take in turn, so that what each call reads comes from memory;
    1 where one set stays, or where a call reads so little that this takes too many."""
    if case.backward or not case.size.cold:
        return 1
    wanted = -(-COLD // max(case.contract.cost(*args).bytes, 1))
    held = sum(t.nbytes for t in args if isinstance(t, Tensor))
    few = wanted <= MOST_COPIES and wanted * held <= MOST_COPIED
    return wanted if few else 1


def copy(args: Arguments) -> Arguments:
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)


def widened(args: Arguments) -> Arguments:
    """The same in float64, for the reference."""
    return tuple(
        a.to(torch.float64) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args
    )
