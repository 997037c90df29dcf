"""Results that are views."""

from __future__ import annotations

import torch
from torch import Tensor

_unsafe_view = torch.ops.aten._unsafe_view.default


def unviewed(result: Tensor) -> Tensor:
    """A view of memory that only the result has, as a tensor of its own: autograd lets nobody
    change a view in place that an op returned, and forward mode wants to know its base."""
    return _unsafe_view(result, result.shape) if result._is_view() else result
