"""Activations inside kernels, of fp32 values; the formulas of :mod:`accel.contracts.activation`."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activate(z, ACT: tl.constexpr):
    """``act(z)``; z itself where ``ACT`` is None."""
    if ACT == "relu":
        z = tl.where(z <= 0, 0.0, z)  # NaN stays
    elif ACT == "gelu":
        z = 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        # 0.5 (1 + tanh u) is the logistic function of 2u.
        z = z / (1 + tl.exp(-1.5957691216057308 * (z + 0.044715 * z * z * z)))
    elif ACT == "silu":
        z = z / (1 + tl.exp(-z))
    return z
