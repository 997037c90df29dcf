"""The backend "interpreted": every Triton kernel, on the host, under the repaired interpreter."""

from __future__ import annotations

from importlib import import_module

from triton.runtime.jit import JITFunction

from accel import host, testing
from accel.triton_kernels import KERNELS
from accel.triton_kernels.builders import (
    TritonLinearBuilder,
    TritonTilingBuilder,
    TritonTransformerBuilder,
    triton_impls,
)
from accel.triton_kernels.tuning import Tile, Tuning
from interpreter import shim

# The interpreter takes as long for a small tile as for a large one, and each block's time again.
_FEW, _MANY = (Tile(blocks, columns=64, warps=4, stages=2) for blocks in (1, 3))
TUNING = Tuning(_FEW, _MANY, _FEW, _MANY)


class _Interpreted:
    device_type = host.HOST

    def tuning(self):
        return TUNING

    def load(self, impl):
        with shim.decorating():
            module = import_module(f"accel.triton_kernels.{KERNELS[impl.op].partition(':')[0]}")
            compiled = [n for n, value in vars(module).items() if isinstance(value, JITFunction)]
            assert not compiled, f"decorated to be compiled in this process: {compiled}"
            return super().load(impl)


class LinearBuilder(_Interpreted, TritonLinearBuilder):
    impls = triton_impls("interpreted", "LinearBuilder")


class TransformerBuilder(_Interpreted, TritonTransformerBuilder):
    impls = triton_impls("interpreted", "TransformerBuilder")


class TilingBuilder(_Interpreted, TritonTilingBuilder):
    impls = triton_impls("interpreted", "TilingBuilder")


def plugin():
    """To be handed to conformance, or to ``accel.testing.installed``."""
    return testing.fake_backend(
        "interpreted",
        rank=-1,
        builders=[LinearBuilder, TransformerBuilder, TilingBuilder],
        accelerator="accel_cpu.accelerator:CpuAccelerator",
    )
