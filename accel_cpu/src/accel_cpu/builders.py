"""Op builders for the host processor: C++ compiled on first use, and oneDNN through torch."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from accel import (
    Impl,
    Kernel,
    Knob,
    NativeLibrary,
    NativeOpBuilder,
    Peer,
    Refusal,
    Request,
    Source,
)
from accel.op_builder import Shapes
from accel.torch_impls.transformer_layer import PIECES, composed
from accel_cpu import (
    attention_gradient,
    gradients,
    ipex,
    logprob_gradient,
    onednn,
    row_gradients,
)
from accel_cpu.peers import OF_LINEAR

_CSRC = Path(__file__).parent / "csrc"
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c")
# One file per instruction set, each with its flags; the library chooses when it runs.
_X86 = {
    "avx2.cpp": _AVX2,
    "avx512.cpp": _AVX512,
    "avx512_bf16.cpp": (*_AVX512, "-mavx512bf16"),
    "amx_bf16.cpp": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
}
# Scheduled before registers are given out, loads push a tile's sums into memory (GCC 12).
_NEON = ("-fno-schedule-insns",)
_ANY = ("dispatch.cpp", "parallel.cpp", "parallel_attention.cpp", "parallel_rows.cpp", "team.cpp")
_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")

LIBRARY = NativeLibrary(
    "accel_cpu",
    [
        # Checks of metadata gain nothing from more, nor does a CPU that every other file leaves out
        # gain by what it costs the others to wait: 12 s in place of 25 with -O3.
        Source(_CSRC / "binding.cpp", ("-O1",), torch=True),
        Source(_CSRC / "scalar.cpp", ("-O1",)),
        *(Source(_CSRC / name) for name in _ANY),
        Source(_CSRC / "neon.cpp", _NEON),  # empty off AArch64
        *(Source(_CSRC / name, flags) for name, flags in _X86.items() if _IS_X86),
    ],
    headers=sorted(_CSRC.glob("*.h")),
    flags=("-O3", "-ffp-contract=off", "-fopenmp"),
    libraries=("c10", "torch_cpu"),
)

_COMPUTED = frozenset({torch.float32, torch.bfloat16, torch.float16})

# Products, and their gradients: of the arguments alone, or of what else a forward keeps.
_PRODUCTS: dict[str, Callable[[Any], Kernel]] = {
    "linear": lambda run: Kernel(run, forward=partial(gradients.linear, run)),
    "gated_linear": lambda run: Kernel(run, forward=gradients.gated_linear),
    "lora_linear": Kernel,
    "quantized_linear": Kernel,
    "norm_linear": lambda run: Kernel(run, backward=gradients.norm_linear),
    "grouped_linear": lambda run: Kernel(run, backward=gradients.grouped_linear),
}

# The ops that go through rows, and their gradients of the arguments alone.
_ROW_GRADIENTS: dict[str, Callable[..., Any] | None] = {
    "rms_norm": row_gradients.rms_norm,
    "layer_norm": row_gradients.layer_norm,
    "add_norm": row_gradients.add_norm,
    "bias_act": row_gradients.bias_act,
    "dropout_add": row_gradients.dropout_add,
    "softmax": None,  # is made of the result
    "rotary": row_gradients.rotary,
}


# Implementations that are other libraries': each lists them, says why not, and loads them.
_OTHERS: dict[str, Any] = {onednn.ID: onednn, ipex.ID: ipex}


class _Native(NativeOpBuilder):
    device_type = "cpu"
    library = LIBRARY
    namespace = "accel_cpu_kernels"

    def native(self, impl: Impl) -> bool:
        return impl.id not in _OTHERS

    def reasons(self, impl: Impl, request: Request) -> list[Refusal]:
        if not self.native(impl):
            found: list[Refusal] = _OTHERS[impl.id].reasons(request)
            return found
        out = request.options.get("out_dtype")
        if out is not None and out not in _COMPUTED:
            have = str(out).removeprefix("torch.")
            want = "float32, bfloat16 or float16"
            return [Refusal("out_dtype", want, have, "cast the result, or let eager torch serve")]
        return super().reasons(impl, request)

    def load(self, impl: Impl) -> Callable[..., Any]:
        loader: Any = super() if self.native(impl) else _OTHERS[impl.id]
        kernel: Callable[..., Any] = loader.load(impl)
        return kernel


class LinearBuilder(_Native):
    """``accel_cpu.native`` reads the weight as it lies, whole numbers of 8 and 4 bits too, and sums
    every output in one order, whatever the shape; ``accel_cpu.onednn`` and ``accel_cpu.ipex`` pack
    the weight and choose their kernels by the shape."""

    impls = (
        *(
            Impl(op, "accel_cpu.native", _COMPUTED, priority=100, shape_invariant=True)
            for op in _PRODUCTS
        ),
        onednn.IMPL,
        ipex.IMPLS["linear"],
    )

    def load(self, impl: Impl) -> Callable[..., Any]:
        kernel = super().load(impl)
        return _PRODUCTS[impl.op](kernel) if self.native(impl) else kernel

    def peers(self) -> Sequence[Peer]:
        return OF_LINEAR

    def knobs(self, impl: Impl) -> tuple[Knob, ...]:
        """How a product is cut into blocks: ``threads`` 1 keeps it on the calling thread, whose
        waking may cost more than it gains; ``columns`` of the result are a block's, 0 as many as it
        would choose. Every output is summed in the same order."""
        if impl.op != "linear" or not self.native(impl):
            return ()
        return Knob("threads", (0, 1)), Knob("columns", (0, 128, 256, 512))

    def turn(
        self, impl: Impl, dtype: torch.dtype, shapes: Shapes, settings: Mapping[str, int]
    ) -> None:
        self.library.load()
        x, w = shapes[:2]
        assert x is not None
        assert w is not None
        alone = settings["threads"] == 1
        kernels = torch.ops.accel_cpu_kernels
        kernels.tune_linear(math.prod(x[:-1]), *w, dtype, alone, settings["columns"])


class TilingBuilder(_Native):
    """``accel_cpu.native`` has of hidden rows the logits of this backend's ``linear``, bit for bit:
    of its results logprob gives the same log-probabilities. tiled_linear's sums start from the
    partial one, so that tiles of whole 1024 columns, of bf16 in pairs of 2048, give linear's bits,
    in fp32."""

    impls = tuple(
        Impl(op, "accel_cpu.native", _COMPUTED, priority=100, shape_invariant=True)
        for op in ("logprob", "tiled_linear")
    )

    def load(self, impl: Impl) -> Callable[..., Any]:
        kernel = super().load(impl)
        if impl.op == "logprob":
            return Kernel(kernel, forward=partial(logprob_gradient.logprob, kernel))
        into = torch.ops.accel_cpu_kernels.tiled_linear_native_into.default
        return Kernel(kernel, into=into, backward=gradients.tiled_linear)


class TransformerBuilder(_Native):
    """Attention adds a query's keys in one order, counted from its span's first; embedding copies;
    the others go through their rows one by one."""

    impls = (
        *(
            Impl(op, "accel_cpu.native", _COMPUTED, priority=100, shape_invariant=True)
            for op in (*_ROW_GRADIENTS, "attention", "embedding", "transformer_layer")
        ),
        ipex.IMPLS["rms_norm"],
        ipex.IMPLS["rotary"],
    )

    def load(self, impl: Impl) -> Callable[..., Any]:
        if not self.native(impl):
            return super().load(impl)
        if impl.op == "transformer_layer":
            return composed(_pieces(), fuses_act=True)
        kernel = super().load(impl)
        if impl.op == "attention":
            return Kernel(kernel, forward=partial(attention_gradient.attention, kernel))
        if impl.op == "softmax":
            return Kernel(kernel, forward=partial(row_gradients.softmax, kernel))
        backward = _ROW_GRADIENTS.get(impl.op)
        return kernel if backward is None else Kernel(kernel, backward=backward)


def _pieces() -> dict[str, Kernel]:
    """The kernels that a transformer_layer is made of."""
    found = {}
    for builder in (LinearBuilder(), TransformerBuilder()):
        for impl in builder.impls:
            if impl.op in PIECES and impl.id == "accel_cpu.native":
                kernel = builder.load(impl)
                found[impl.op] = kernel if isinstance(kernel, Kernel) else Kernel(kernel)
    return found
