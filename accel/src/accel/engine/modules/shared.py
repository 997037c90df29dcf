"""Projections that several ranks compute together: see :mod:`accel.engine.parallel.share`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from accel.contracts.checks import WIDE
from accel.engine.modules.projection import part, plain, width
from accel.engine.parallel.share import Share


def gathered(module: nn.Module, x: Tensor, share: Share) -> Tensor:
    """All of ``module(x)``, of which each rank has made some output features."""
    parts = share.parts(width(module))
    return share.ranks.gather(part(module, x, parts[share.ranks.rank]), parts)


def back(module: nn.Module, own: Tensor, parts: Sequence[slice], share: Share) -> Tensor:
    """All of ``module(x)``, of an x whose columns ``parts`` the ranks have, this one ``own``.

    With ``share.sums`` each multiplies its columns, and one sum follows, where the module's weight
    may be read; else x is gathered first.
    """
    linear = plain(module) if share.sums else None
    if linear is None:
        return gathered(module, share.ranks.gather(own, parts), share)
    mine = linear.narrowed(columns=parts[share.ranks.rank])
    y = share.ranks.sum(mine(own, out_dtype=WIDE[own.dtype]))
    return (y if linear.bias is None else y + linear.bias.to(y.dtype)).to(own.dtype)
