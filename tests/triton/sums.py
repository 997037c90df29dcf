"""How attention's kernel adds up a row's weights on a GPU, for calls that must agree bitwise; in a
process where nothing is interpreted.

    python sums.py sm_90

The order of a sum follows from how its elements are laid out over threads, which the compiler
chooses. Prints a line for each call: dtype, mask or none, and the layouts of what is summed.
"""

from __future__ import annotations

import json
import re
import sys

import ahead
import torch
import triton

from accel.contracts import CONTRACTS
from accel.triton_kernels import attention, launching
from accel_cuda import tuning

HEADS, GROUPS, SIZE = 8, 2, 64
# (queries, keys, programs that a GPU wants, whether rows lie where nothing is a multiple of 16)
CALLS = [(1, 700, 512, False), (700, 700, 1, False), (33, 701, 512, True), (5, 64, 1, True)]


def arguments(queries, keys, odd, dtype, masked):
    rows, size = max(queries, keys), SIZE + odd
    fused = torch.zeros(rows, HEADS + 2 * GROUPS, size, dtype=dtype)[..., :SIZE]
    q, k, v = fused.split((HEADS, GROUPS, GROUPS), 1)
    mask = torch.zeros(1, 1, queries, keys, dtype=dtype) if masked else None
    spans = torch.tensor([[0, queries, 0, keys]])
    return CONTRACTS["attention"].bind((q[:queries], k[:keys], v[:keys], spans, mask))


def layouts(architecture, programs, args):
    found = []
    launching.launch, real = (
        lambda *launch, **known: found.append((launch, known)),
        launching.launch,
    )
    attention.PROGRAMS = programs
    try:
        attention.attention(tuning.of(architecture), *args)
    finally:
        launching.launch = real
    (kernel, _, tile, *given), known = found[0]
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": False}
    made = triton.compile(
        ahead.source(kernel, given, known), target=ahead.target(architecture), options=options
    )
    text = made.asm["ttgir"]
    named = dict(re.findall(r"^#(\w+) = (.*)$", text, re.M))
    sums = re.findall(r'"tt\.reduce".*?\}\) : \(tensor<16x\d+xf32, #(\w+)>', text, re.S)
    return sorted({named[name] for name in sums})


def main(architecture):
    for dtype in (torch.float32, torch.bfloat16):
        for masked in (False, True):
            for queries, keys, programs, odd in CALLS:
                args = arguments(queries, keys, odd, dtype, masked)
                print(json.dumps([str(dtype), masked, layouts(architecture, programs, args)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
