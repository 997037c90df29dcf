"""tanh and the slopes of activations inside kernels, of fp32 values."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(z):
    """To some 2e-7 of its value: near 0, where a difference of exponentials would lose digits, by
    its series up to the 13th power."""
    s = z * z
    near = 21844.0 / 6081075.0
    near = near * s - 1382.0 / 155925.0
    near = near * s + 62.0 / 2835.0
    near = near * s - 17.0 / 315.0
    near = near * s + 2.0 / 15.0
    near = near * s - 1.0 / 3.0
    near = z + z * s * near
    size = tl.abs(z)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    far = tl.where(z < 0, -far, far)
    return tl.where(size < 0.4, near, far)


@triton.jit
def slope(z, ACT: tl.constexpr):
    """The derivative of the activation at z; the formulas of :mod:`accel.contracts.activation`."""
    if ACT == "relu":
        z = (z > 0).to(tl.float32)
    elif ACT == "gelu":
        density = tl.exp(-0.5 * z * z) * 0.3989422804014327
        z = 0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * density
    elif ACT == "gelu_tanh":
        t = tanh(0.7978845608028654 * (z + 0.044715 * z * z * z))
        z = 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * 0.7978845608028654 * (1 + 0.134145 * z * z)
    elif ACT == "silu":
        s = 1 / (1 + tl.exp(-z))
        z = s * (1 + z * (1 - s))
    return z
