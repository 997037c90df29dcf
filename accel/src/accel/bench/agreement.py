"""Whether a contender computes what the contract says: who computes something else is no peer.

Implementations are held to the contract's tolerance, as everywhere. Peers, and anybody's gradients,
may round between their steps, which plain torch does in half precision: SLACK times that. It is
still far below what a wrong formula, a missing bias or a lower precision makes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accel.contracts import Tolerance

SLACK = 8.0


@dataclass(frozen=True)
class Error:
    """Of a result against float64; the worst of several results.

    In units of the result's RMS; the largest of one element in units of its row's, where that is
    more: of causal attention the first rows, means of few values, stand far out of the others.
    """

    rms: float
    peak: float

    def used(self, tolerance: Tolerance, slack: float) -> float:
        """The share of the budget that it uses; more than 1 breaks it, and so does NaN."""
        return (
            max(_nan_last(self.rms / tolerance.rms), _nan_last(self.peak / tolerance.peak)) / slack
        )


def error(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> Error:
    """ValueError where they are not the same number of results, or of other shapes."""
    shapes = [[tuple(t.shape) for t in results] for results in (got, wanted)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"results of shapes {shapes[0]}, where the contract has {shapes[1]}")
    errors = [_error(one, other) for one, other in zip(got, wanted)]
    return Error(*(max((e[i] for e in errors), key=_nan_last) for i in range(2)))


def _error(got: Tensor, wanted: Tensor) -> tuple[float, float]:
    if wanted.numel() == 0:
        return 0.0, 0.0
    wanted = wanted.to(torch.float64)
    off = got.to(wanted.device).to(torch.float64) - wanted
    size = float(wanted.square().mean().sqrt()) or 1.0
    of_rows = torch.atleast_1d(wanted).square().mean(-1).sqrt()
    peaks = torch.atleast_1d(off).abs().amax(-1) / of_rows.clamp(min=size)
    return float(off.square().mean().sqrt()) / size, float(peaks.max())


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
