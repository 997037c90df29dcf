"""How far results may be from each other where no contract says it: derived, in one place.

A result of n operations, each rounded to the unit roundoff u, is within gamma(n) = n u / (1 - n u)
of the exact one, in parts of the largest magnitude that went into it (Higham, Accuracy and
Stability of Numerical Algorithms, 3.1).
"""

import math

import torch
from torch.utils._pytree import tree_flatten

# No result that these tests compare is made of more operations, nor of much larger terms than the
# largest result beside it.
OPERATIONS = 4096


def gamma(dtype, operations=OPERATIONS):
    share = operations * torch.finfo(dtype).eps / 2
    return share / (1 - share)


def assert_agree(found, want, operations=OPERATIONS):
    """Tensors, or nests of them, of one shape and dtype, that differ by no more than as many
    ``operations`` account for; NaN and infinities in the same places."""
    ones, shape = tree_flatten(found)
    others, expected = tree_flatten(want)
    assert len(ones) == len(others), f"{shape} beside {expected}"
    for one, other in zip(ones, others):
        assert (one is None) == (other is None)
        if one is None:
            continue
        finite = other[other.isfinite()]
        size = finite.abs().max().item() if finite.numel() else 0.0
        bound = gamma(other.dtype, operations) * size if other.is_floating_point() else 0
        torch.testing.assert_close(one, other, rtol=0, atol=bound, equal_nan=True)


def off(step):
    """What a central difference over this step is off by in float64, in parts of the values'
    size: a result's rounding over the step; the step's square is less."""
    return gamma(torch.float64, math.isqrt(OPERATIONS)) / step


def assert_slope(slope, rise, step, size=None):
    """A derivative beside the rise of its function from a step before to a step behind."""
    size = max(abs(slope), abs(rise) / (2 * step)) if size is None else size
    assert abs(slope - rise / (2 * step)) <= 100 * off(step) * size


def assert_gradients(function, leaves, step=1e-6):
    """Of float64 leaves, first and second derivatives against central differences."""
    once = off(step)
    assert torch.autograd.gradcheck(function, leaves, eps=step, rtol=10 * once, atol=10 * once)
    # Differences of the first, which is off itself.
    assert torch.autograd.gradgradcheck(
        function, leaves, eps=step, rtol=100 * once, atol=100 * once
    )


def assert_drawn(sample, std):
    """Normal numbers of mean 0: their deviation is known to one part in the root of twice their
    count; it is within four of those, once in 16,000 not."""
    assert abs(sample.std().item() / std - 1) <= 4 / math.sqrt(2 * sample.numel())
