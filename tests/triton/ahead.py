"""Compiles every kernel for GPUs that need not be there, as its launches would, in a process where
nothing is interpreted.

    python ahead.py few sm_90 bfloat16             # each kernel as its op's first sample starts it
    python ahead.py both sm_90 bfloat16,float32    # also with the tile for many rows
    python ahead.py all sm_90,gfx942 bfloat16      # and as all samples start it
    python ahead.py heads sm_90 bfloat16           # attention alone, of the largest heads

The tuning is each architecture's; of launches that differ in sizes alone one is compiled, to
machine code. Prints a line of JSON for each.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from dataclasses import replace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from accel import testing
from accel.contracts import CONTRACTS
from accel.triton_kernels import KERNELS, builders, launching, limits
from accel_cuda import tuning

TYPES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64",
    torch.int32: "i32", torch.int8: "i8", torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip
PRODUCTS = r"mma\.sync[\w.]*|wgmma\.mma[\w.]*|tcgen05\.mma[\w.]*|v_mfma_\w+"


def target(architecture):
    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64)


def run(op, settings, args):
    """The op, and its gradient where that has kernels of its own."""
    made, contract = builders.kernel(op, settings), CONTRACTS[op]
    results, kept, backward = made(*args), {}, made.backward
    if made.forward is not None:
        results, tensors, backward = made.forward(*args)
        kept = {"kept": tensors}
    if backward is not None:
        grads = [torch.ones_like(t) for t in results] if contract.result_count > 1 else results
        needs = tuple(isinstance(arg, torch.Tensor) and arg.is_floating_point() for arg in args)
        backward(grads, needs, *args, **kept)


def launches(op, settings, dtype, which):
    """What the op and its gradient start for the contract's samples: (kernel, tile, args,
    constants)."""
    found = []

    def record(kernel, grid, tile, *args, **constants):
        found.append((kernel, tile, args, constants))

    launching.launch, real = record, launching.launch
    # Of many rows too, which the samples seldom have.
    many = replace(settings, few=settings.many, few_fp32=settings.many_fp32)
    try:
        if which == "heads":
            run(op, settings, largest_heads(dtype))
            return found
        for i, sample in enumerate(CONTRACTS[op].samples()):
            args = sample.make(dtype, torch.device(testing.HOST))
            if i == 0 or which == "all":
                run(op, settings, args)
            if i == 0 and which != "few":
                run(op, many, args)
    finally:
        launching.launch = real
    return found


def largest_heads(dtype):
    q = k = v = torch.zeros(40, 2, limits.largest_head(dtype), dtype=dtype)
    return CONTRACTS["attention"].bind((q, k, v, torch.tensor([[0, 40, 0, 40]])))


def source(kernel, args, constants):
    """A launch as Triton's compiler takes it: types, what is known at compile time, and which
    integers and addresses are multiples of 16."""
    signature, known, attributes = {}, {}, {}
    names = list(inspect.signature(kernel.fn).parameters)
    given = dict(zip(names, args)) | constants
    generic = {p.name for p in kernel.params if p.do_not_specialize}
    anywhere = {p.name for p in kernel.params if p.do_not_specialize_on_alignment}
    for i, name in enumerate(names):
        value = given[name]
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            if value.data_ptr() % 16 == 0 and name not in anywhere:
                attributes[(i,)] = [["tt.divisibility", 16]]
        elif name in constants or value is None or (value == 1 and name not in generic):
            signature[name], known[name] = "constexpr", value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and name not in generic | anywhere:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, known, attributes)


def kind(kernel, tile, args, constants):
    """What two launches of one kernel have in common that differ in sizes and strides alone."""
    given = [arg.dtype if isinstance(arg, torch.Tensor) else arg in (None, 1) for arg in args]
    return kernel.__name__, tile, tuple(given), tuple(constants.items())


def compiled(architecture, dtype, op, which, seen):
    for kernel, tile, args, constants in launches(op, tuning.of(architecture), dtype, which):
        key = (architecture, *kind(kernel, tile, args, constants))
        if key in seen:
            continue
        seen.add(key)
        made = source(kernel, args, constants)
        options = {
            "num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": False,
        }  # fmt: skip
        binary = triton.compile(made, target=target(architecture), options=options)
        text = binary.asm.get("ptx") or binary.asm["amdgcn"]
        yield {
            "op": op,
            "kernel": kernel.__name__,
            "architecture": architecture,
            "dtype": str(dtype).removeprefix("torch."),
            "tile": str(tile),
            "products": sorted(set(re.findall(PRODUCTS, text))),
            "tf32": "tf32" in text or "xf32" in text,
            "bytes": len(binary.asm.get("cubin") or binary.asm["hsaco"]),
            "shared": binary.metadata.shared,
        }


def main(which, architectures, dtypes):
    seen = set()
    for architecture in architectures.split(","):
        for dtype in dtypes.split(","):
            for op in ["attention"] if which == "heads" else KERNELS:
                for found in compiled(architecture, getattr(torch, dtype), op, which, seen):
                    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
