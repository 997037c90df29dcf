"""The backend "interpreted": every Triton kernel, on the host, under the repaired interpreter."""

from __future__ import annotations

from importlib import import_module

from triton.runtime.jit import JITFunction

from accel import host, testing
from accel.triton_kernels import KERNELS
from accel.triton_kernels.builders import (
    PACKAGE,
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
            module = import_module(f"{self.kernels}.{KERNELS[impl.op].partition(':')[0]}")
            compiled = [n for n, value in vars(module).items() if isinstance(value, JITFunction)]
            assert not compiled, f"decorated to be compiled in this process: {compiled}"
            return super().load(impl)


def plugin(name="interpreted", kernels=PACKAGE):
    """To be handed to conformance, or to ``accel.testing.installed``. ``kernels`` is the package
    that they are in: their own, or a copy of it."""
    families = {
        "LinearBuilder": TritonLinearBuilder,
        "TransformerBuilder": TritonTransformerBuilder,
        "TilingBuilder": TritonTilingBuilder,
    }
    builders = [
        type(
            family, (_Interpreted, base), {"impls": triton_impls(name, family), "kernels": kernels}
        )
        for family, base in families.items()
    ]
    return testing.fake_backend(
        name, rank=-1, builders=builders, accelerator="accel_cpu.accelerator:CpuAccelerator"
    )
