"""CUDA C++ compiled on first use: a library of launchers with a C ABI, and the builder's part.

**Not run on hardware.** The launchers need none of torch's CUDA headers, which are not in every
torch, and a call through ctypes starts a kernel without the work that Triton's launcher does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from accel import Impl, NativeLibrary, NativeOpBuilder, Refusal, Source
from accel.native import cache
from accel.triton_kernels import launching
from accel_cuda import nvcc

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class CudaLibrary(NativeLibrary):
    """A :class:`~accel.NativeLibrary` that nvcc compiles."""

    @cached_property
    def entry(self) -> cache.Entry:
        parts: list[bytes | str] = [*nvcc.fingerprint(), *self.flags]
        for source in self.sources:
            parts += [source.path.name, source.path.read_bytes()]
        return cache.Entry(self.name, cache.key(parts), f"lib{self.name}.so")

    def refusals(self) -> list[Refusal]:
        return nvcc.refusals() or ([] if self.is_built() else cache.refusals())

    def _make(self, folder: Path) -> None:
        nvcc.build(folder / self.entry.file, [s.path for s in self.sources], self.flags)


LIBRARY = CudaLibrary(
    "accel_cuda",
    [Source(Path(__file__).parent / "csrc/rms_norm.cu")],
    # As in Triton's kernels: a product and a sum round twice, wherever they stand.
    flags=("-O3", "-std=c++17", "-fmad=false"),
    libraries=(),
)


class TransformerBuilder(NativeOpBuilder):
    """``accel_cuda.native``, below Triton's: it serves where Triton is not installed. A builder of
    its own, so that what needs no compiler is not said to need one."""

    device_type = "cuda"
    library = LIBRARY
    impls = (Impl("rms_norm", "accel_cuda.native", frozenset(_DTYPES), 90, shape_invariant=True),)

    def needs_build(self) -> bool:
        return not self.library.refusals() and not self.library.is_built()

    def build(self) -> None:
        """Does nothing where the library is refused: nothing needs it."""
        if not self.library.refusals():
            self.library.build()

    def load(self, impl: Impl) -> Callable[..., Any]:
        return RmsNorm(self.library.load(), _stream)


def _stream(x: Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream


class RmsNorm:
    """rms_norm by the library's launcher; ``stream`` tells the one to start it on."""

    def __init__(self, library: ctypes.CDLL, stream: Callable[[Tensor], int]) -> None:
        self.launcher = library.accel_rms_norm
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self.launcher.argtypes = [
            ctypes.c_int, pointer, pointer, pointer, *[size] * 5, ctypes.c_float, pointer,
        ]  # fmt: skip
        self.told = library.accel_cuda_error
        self.told.restype = ctypes.c_char_p
        self.stream = stream

    def __call__(self, x: Tensor, w: Tensor | None, eps: float) -> Tensor:
        """``[..., K]`` of x ``[..., K]`` and w ``[K]``, in x's dtype."""
        launching.require_one_device(x, w)
        rows = launching.as_rows(x)
        y = x.new_empty(x.shape)
        if y.numel():
            with launching.on(x.device):
                code = self.launcher(
                    _DTYPES[x.dtype], rows.data_ptr(), None if w is None else w.data_ptr(),
                    y.data_ptr(), *rows.shape, *rows.stride(), launching.step_of(w), eps,
                    self.stream(x),
                )  # fmt: skip
            if code:
                raise RuntimeError(f"rms_norm: CUDA error {code}: {self.told(code).decode()}")
        return y
