"""Shape invariance where a fault that is rare, or that long sums have, would show.

An op of a million results and sums of two thousand terms, cut into batches of other heights, on
1, 2 and 3 threads: every row has the same bits. One case per op, implementation and dtype of those
that claim it; the samples' own shapes are those of rows.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from accel.contracts import Contract
from accel.contracts.inputs import Draw
from accel.testing import HOST
from accel_conformance.case import Case, Evidence
from accel_conformance.subject import Subject
from accel_conformance.suite import regroup
from accel_conformance.suite.rows import cancelling, on_threads
from accel_conformance.target import Args, Results, Target, each, name_of, same_bits

RESULTS = 10**6
WIDTH, OTHER = 2051, 509  # of a row, and of what else is larger than SMALL: no multiples of a tile
SMALL = 8  # numbers of heads, ranks
HEIGHTS = (1, 7, 33, 257)  # of batches, again and again
THREADS = (1, 2, 3)
SEQUENCES = ((1500, 1500), (1, 1), (33, 40), (517, 517))  # attention's queries and keys
HEADS, KEY_HEADS, HEAD_DIM = 8, 2, 64
# Ops whose rows other arguments speak of, each in a way of its own.
OWN_ROWS = ("grouped_linear", "transformer_layer")


def cases(subject: Subject) -> Iterator[Case]:
    for target in subject.targets:
        if not target.impl.shape_invariant or target.op in OWN_ROWS:
            continue
        for dtype in subject.dtypes(target):
            about = f"rows/{target.op}/{target.impl.id}/{name_of(dtype)}"
            who = (target.op, target.impl.id, name_of(dtype))
            yield Case(f"{about}/a_million", partial(a_million, target, dtype), *who)


def a_million(target: Target, dtype: torch.dtype, seen: Evidence) -> None:
    """The whole on every number of threads, and cut in two ways."""
    args = cancelling(_arguments(target.contract, dtype, target.device))
    with target.alone():
        if target.declines(seen, args):
            return
        seen.ran = target.bound(args)
        rows = regroup.count(target.contract, args)
        counts = THREADS if target.device.type == HOST else THREADS[:1]
        with on_threads(counts[0]):
            whole = regroup.by_row(target.call(args), rows)
        for count in counts[1:]:
            with on_threads(count):
                again = regroup.by_row(target.call(args), rows)
            _expect_same(seen, again, whole, f"on {count} threads")
        for count, heights in zip(counts[::-1], (HEIGHTS, HEIGHTS[::-1])):
            with on_threads(count):
                cut = _in_batches(target, args, rows, heights)
            _expect_same(seen, cut, whole, f"in batches of {heights} rows on {count} threads")


def _arguments(contract: Contract, dtype: torch.dtype, device: torch.device) -> Args:
    """Of an odd sample's kind, with wide rows and so many that there are enough results; where a
    row's results are few, as of logprob, its logits count."""
    if contract.name == "attention":
        return _attention(contract, dtype, device)
    samples = list(contract.samples())
    sample = next((s for s in samples if s.name.startswith("odd")), samples[0])
    args = _stretched(contract, sample.make(dtype, device))
    results = sum(result.numel() for result in each(contract.fake(*args)))
    own = results // regroup.count(contract, args)
    weights = [t.shape[0] for name, t in _others(contract, args) if t.dim() > 1]
    rows = RESULTS // max(own, *weights, 1) + 1 | 1
    return regroup.new_rows(contract, args, rows, "a_million")


def _stretched(contract: Contract, args: Args) -> Args:
    """The arguments with rows :data:`WIDTH` wide, and of what is as wide as they are."""
    width = contract.key(args).shape[-1]
    own = regroup.row_dimensions(contract)

    def size(old: int) -> int:
        return WIDTH if old == width else OTHER if old > SMALL else old

    def stretched(name: str, arg: Any) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        kept = arg.dim() - own.get(name, arg.dim())
        shape = torch.Size((*arg.shape[:kept], *map(size, arg.shape[kept:])))
        if not arg.is_floating_point():  # numbers have a range
            return arg.flatten()[torch.arange(shape.numel()) % arg.numel()].reshape(shape)
        drawn = Draw(contract.name).plain(f"a_million.{name}", shape, arg.dtype, arg.device)
        return drawn.mul_(shape[-1] ** -0.5) if name not in own and len(shape) > 1 else drawn

    return tuple(stretched(name, arg) for name, arg in zip(contract.parameters, args))


def _others(contract: Contract, args: Args) -> Iterator[tuple[str, Tensor]]:
    """The tensors without rows, by name."""
    own = regroup.row_dimensions(contract)
    for name, arg in zip(contract.parameters, args):
        if isinstance(arg, Tensor) and name not in own:
            yield name, arg


def _attention(contract: Contract, dtype: torch.dtype, device: torch.device) -> Args:
    """Sequences of all lengths; of one a part of the keys is older than the queries."""
    queries, keys = map(sum, zip(*SEQUENCES))
    shapes = {"q": (queries, HEADS, HEAD_DIM), "k": (keys, KEY_HEADS, HEAD_DIM),
              "v": (keys, KEY_HEADS, HEAD_DIM)}  # fmt: skip
    named: dict[str, Any] = {
        name: Draw(contract.name).plain(f"a_million.{name}", shape, dtype, device)
        for name, shape in shapes.items()
    }
    lengths = torch.tensor(SEQUENCES)
    starts = lengths.cumsum(0) - lengths
    named["spans"] = torch.stack((starts, lengths), 2).flatten(1).to(device)
    return contract.bind((), named)


def _in_batches(target: Target, args: Args, rows: int, heights: tuple[int, ...]) -> Results:
    """The results by row, from one call after another."""
    found = []
    start = 0
    for height in itertools.cycle(heights):
        stop = min(start + height, rows)
        part = regroup.take(target.contract, args, start, stop)
        found.append(regroup.by_row(target.call(part), stop - start))
        start = stop
        if stop == rows:
            return tuple(map(torch.cat, zip(*found)))
    raise AssertionError("a cycle does not end")


def _expect_same(seen: Evidence, found: Results, whole: Results, how: str) -> None:
    same = same_bits(found, whole)
    says = "" if same else f"{how}, {_differing(found, whole)}"
    seen.expect("rows", same, says)


def _differing(found: Results, whole: Results) -> str:
    off = [
        i
        for i, pair in enumerate(zip(regroup.each_row(found), regroup.each_row(whole)))
        if not same_bits(*pair)
    ]
    return f"{len(off)} of {len(whole[0])} rows differ, the first is {off[:1]}"
