"""What watches torch operations, so that a kernel's result alone is not all that is wanted."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def torch_is_watched() -> bool:
    """True under compilation, a functorch transform, a dispatch mode or forward mode."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )
