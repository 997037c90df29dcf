"""Triton's interpreter (3.9) as the compiled kernels compute, in any process.

What it gets wrong is repaired: bf16 values are 16-bit integers to it, so its products of them are
garbage, and it rounds to bf16 by cutting off; numpy's matmul has other sums for other numbers of
rows. Arithmetic on bf16, which would be on those integers, is an error here: kernels widen first.

It also expects TRITON_INTERPRET=1 in the environment before triton is imported, for good. Here
kernels are interpreted that were decorated in the body of :func:`decorating`, and nothing else of
the process is.
"""

from __future__ import annotations

import types
from contextlib import contextmanager

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle
from triton.runtime.jit import JITFunction


@contextmanager
def decorating():
    """Functions decorated by ``triton.jit`` in the body are interpreted when they are called."""
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        yield


# -- bf16 --------------------------------------------------------------------------------------


def widened(handle):
    """The values of a handle as numpy can compute with them."""
    if handle.dtype.scalar == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return handle.data


def to_bf16(values):
    """fp32 values as the bits of the nearest bf16, ties to even, NaN staying NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, nearest).astype(np.uint16)


def cast(self, src, dst_type):
    dtype = dst_type.scalar
    if src.dtype.scalar == dtype:
        return TensorHandle(src.data, dtype)
    values = widened(src)
    with np.errstate(over="ignore", invalid="ignore"):  # as on a device
        if dtype == tl.bfloat16:
            return TensorHandle(to_bf16(values.astype(np.float32)), dtype)
        return TensorHandle(values.astype(interpreter._get_np_dtype(dst_type)), dtype)


def round_to(self, src, dst_type, rounding_mode):
    return cast(self, src, dst_type)


_BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift)
_binary_op = InterpreterBuilder.binary_op


def binary_op(self, lhs, rhs, op):
    if tl.bfloat16 in (lhs.dtype.scalar, rhs.dtype.scalar) and op not in _BITWISE:
        raise TypeError(f"{op.__name__} of bf16: widen to fp32 first")
    with np.errstate(all="ignore"):
        return _binary_op(self, lhs, rhs, op)


_unary_op = InterpreterBuilder.unary_op


def unary_op(self, arg, op):
    if arg.dtype.scalar == tl.bfloat16:
        raise TypeError(f"{op.__name__} of bf16: widen to fp32 first")
    with np.errstate(all="ignore"):
        return _unary_op(self, arg, op)


# -- products ----------------------------------------------------------------------------------


def dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    """a @ b + d in d's dtype, a row's sum the same whatever rows are beside it."""
    dtype = d.data.dtype
    ones, others = widened(a).astype(dtype), widened(b).astype(dtype)
    with np.errstate(all="ignore"):
        product = np.einsum("...ik,...kj->...ij", ones, others, optimize=False)
        return TensorHandle(product + d.data, d.dtype.scalar)


InterpreterBuilder.cast_impl = cast
InterpreterBuilder.create_fp_to_fp = round_to
InterpreterBuilder.binary_op = binary_op
InterpreterBuilder.unary_op = unary_op
InterpreterBuilder.create_dot = dot

# -- the language --------------------------------------------------------------------------------

_patch_lang = interpreter._patch_lang
_BOTH = types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
_LIBRARY = {
    name: InterpretedFunction(value.fn)
    for name, value in vars(tl).items()
    if isinstance(value, JITFunction)
}
_running = []


class _Nothing:
    def restore(self):
        pass


def patch_lang(fn):
    """The language means the interpreter's while a kernel runs: once for it and all it calls."""
    if _running:
        return _Nothing()
    scope = _patch_lang(_BOTH)
    for name, function in _LIBRARY.items():
        scope.set_attr(tl, name, function)
    scope.set_attr(triton.knobs.runtime, "interpret", True)
    restore = scope.restore

    def ended():
        _running.clear()
        restore()

    scope.restore = ended
    _running.append(fn)
    return scope


interpreter._patch_lang = patch_lang
