"""How kernels add up a row on a GPU, for calls that must agree bitwise; in a process where nothing
is interpreted.

    python sums.py sm_90

The order of a sum follows from how its elements are laid out over threads, which the compiler
chooses by what it knows of sizes, strides and addresses. Prints a line for each call: op, variant,
dtype, and the layouts of what is summed, kernel by kernel.
"""

from __future__ import annotations

import json
import re
import sys

import ahead
import torch
import triton

from accel.contracts import CONTRACTS
from accel.triton_kernels import attention, builders, launching, logprob
from accel_cuda import tuning

HEADS, GROUPS, SIZE, COLUMNS, VOCABULARY = 8, 2, 64, 256, 5001
# (queries, keys, programs that a GPU wants, whether rows lie where nothing is a multiple of 16)
CALLS = [(1, 700, 512, False), (700, 700, 1, False), (33, 701, 512, True), (5, 64, 1, True)]
# How many rows, and elements before the first and between one and the next.
ROWS = [(1, 0, 0), (700, 0, 0), (33, 1, 0), (700, 8, 8), (5, 1, 7)]
# As many rows beside as many bytes for a tile of their logits.
TILES = [(1, 1 << 30), (3, 4 * 3 * 2048), (700, 4 * 700 * 4096)]


def attentions(dtype):
    for queries, keys, attention.PROGRAMS, odd in CALLS:
        rows, size = max(queries, keys), SIZE + odd
        fused = torch.zeros(rows, HEADS + 2 * GROUPS, size, dtype=dtype)[..., :SIZE]
        q, k, v = fused.split((HEADS, GROUPS, GROUPS), 1)
        mask = torch.zeros(1, 1, queries, keys, dtype=dtype)
        spans = torch.tensor([[0, queries, 0, keys]])
        yield "attention", "", (q[:queries], k[:keys], v[:keys], spans)
        yield "attention", "mask", (q[:queries], k[:keys], v[:keys], spans, mask)


def of_rows(dtype):
    w, b = torch.zeros(96, COLUMNS, dtype=dtype), torch.zeros(COLUMNS, dtype=dtype)
    for x in placed(COLUMNS, dtype):
        for kind in ("rms", "layer"):
            yield "norm_linear", kind, (x, w, b, None, None, kind)
            yield "add_norm", kind, (x, x, b, None, kind)
        yield "rms_norm", "", (x, b)
        yield "layer_norm", "", (x, b, b)
        yield "softmax", "", (x,)


def logprobs(dtype):
    w = torch.zeros(VOCABULARY, SIZE, dtype=dtype)
    for rows, logprob.TILE_BYTES in TILES:
        yield "logprob", "head", (torch.zeros(rows, SIZE, dtype=dtype), ids(rows), w)
    for z in placed(VOCABULARY, dtype):
        yield "logprob", "logits", (z, ids(len(z)))


def placed(columns, dtype):
    """Rows of so many columns, wherever they lie."""
    for rows, before, between in ROWS:
        row = columns + between
        whole = torch.zeros(before + rows * row, dtype=dtype)
        yield whole[before:].view(rows, row)[:, :columns]


def ids(rows):
    return torch.zeros(rows + 1, dtype=torch.int64)[1:]


def launches(run, args):
    found = []
    launching.launch, real = (
        lambda *launch, **known: found.append((launch, known)),
        launching.launch,
    )
    try:
        run(*args)
    finally:
        launching.launch = real
    return found


def layouts(architecture, launch, known):
    """Of everything in fp32 that the kernel adds up across threads."""
    kernel, _, tile, *given = launch
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": False}
    made = triton.compile(
        ahead.source(kernel, given, known), target=ahead.target(architecture), options=options
    )
    text = made.asm["ttgir"]
    named = dict(re.findall(r"^#(\w+) = (.*)$", text, re.M))
    sums = re.findall(r'"tt\.reduce".*?\}\) : \(tensor<([\dx]+)xf32, #(\w+)>', text, re.S)
    return sorted({(shape, named[name]) for shape, name in sums})


def main(architecture):
    settings = tuning.of(architecture)
    for dtype in (torch.float32, torch.bfloat16):
        for calls in (attentions, of_rows, logprobs):
            for op, variant, args in calls(dtype):
                bound = CONTRACTS[op].bind(args)
                found = {}
                for launch, known in launches(builders.kernel(op, settings), bound):
                    laid = layouts(architecture, launch, known)
                    if laid or op == "norm_linear":
                        found.setdefault(launch[0].__name__, []).append(laid)
                for name, laid in found.items():
                    for one in {str(one): one for one in laid}.values():
                        print(json.dumps([op, variant, str(dtype), name, one]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
