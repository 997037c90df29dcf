"""A million results of sums of two thousand terms, where a fault that is rare or that long sums
have would show.

Of every implementation, in one dtype, each result is held to its own bound. Of those that claim
shape invariance, in all, the rows are cut into batches of other heights, on 1, 2 and 3 threads, and
have the same bits. The samples' own shapes are those of numerics.py and rows.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from accel.accelerator import Accelerator
from accel.contracts import Contract
from accel.contracts.inputs import Draw
from accel.refusal import Refusal
from accel_conformance.case import Case, Evidence
from accel_conformance.expected import expected
from accel_conformance.subject import Subject
from accel_conformance.suite import regroup
from accel_conformance.suite.numerics import componentwise
from accel_conformance.suite.rows import cancelling, on_threads
from accel_conformance.target import Args, Results, Target, each, name_of, same_bits

Check = Callable[[Target, Args, Evidence], None]

RESULTS = 10**6
WIDTH, OTHER = 2051, 509  # of a row, and of what else is larger than SMALL: no multiples of a tile
SMALL = 8  # numbers of heads, ranks
HEIGHTS = (1, 7, 33, 257)  # of batches, again and again
# Threads and batches that must give what one thread gives of all rows at once; both kinds of values
# are needed: sums that cancel show in products, and a softmax of large numbers has one term.
ARRANGED = {
    "plain": ((2, HEIGHTS), (3, None)),
    "cancelling": ((3, HEIGHTS[::-1]), (2, None)),
}
SEQUENCES = ((1500, 1500), (1, 1), (33, 40), (517, 517))  # attention's queries and keys
HEADS, KEY_HEADS, HEAD_DIM = 8, 2, 64
# Ops whose rows other arguments speak of, each in a way of its own.
OWN_ROWS = ("grouped_linear", "transformer_layer")
BY_QUERY = ("attention",)  # which an oracle computes too slowly for so many


def cases(subject: Subject) -> Iterator[Case]:
    for target in subject.targets:
        if target.op in OWN_ROWS:
            continue
        dtypes = subject.dtypes(target)
        asked: dict[Check, list[torch.dtype]] = {
            rows: dtypes if target.impl.shape_invariant else [],
            accurate: dtypes[: target.op not in BY_QUERY],
        }
        for check, some in asked.items():
            for dtype in some:
                yield Case(
                    f"large/{target.op}/{target.impl.id}/{name_of(dtype)}/{check.__name__}",
                    partial(_run, check, target, dtype, subject.accelerator),
                    target.op,
                    target.impl.id,
                    name_of(dtype),
                )


def _run(
    check: Check, target: Target, dtype: torch.dtype, acc: Accelerator, seen: Evidence
) -> None:
    args = _arguments(target.contract, dtype, target.device)
    needed, there = _products(target.contract, args), acc.properties().total_memory
    if there is not None and needed > there:
        want = f"{needed} bytes, for a kernel that holds every product of {RESULTS} sums"
        seen.refused([Refusal("memory", want, f"{there}", "use a device with more memory")])
        return
    seen.input = target.told(args)
    with target.alone():
        if not target.declines(seen, args):
            seen.ran = target.bound(args)
            check(target, args, seen)


def accurate(target: Target, args: Args, seen: Evidence) -> None:
    """The largest of a million errors is larger than a sample's: each has a bound of its own."""
    componentwise(seen, target.call(args), expected(target.contract, args), "accuracy")


def rows(target: Target, plain: Args, seen: Evidence) -> None:
    """All rows at once on one thread, against other threads and batches."""
    count = regroup.count(target.contract, plain)
    for (kind, arranged), args in zip(ARRANGED.items(), (plain, cancelling(plain))):
        with on_threads(1):
            whole = regroup.by_row(target.call(args), count)
        for threads, heights in arranged:
            with on_threads(threads):
                found = _in_batches(target, args, count, heights or (count,))
            how = f"in batches of {heights} rows" if heights else "all rows at once"
            same = same_bits(found, whole)
            says = "" if same else _differing(found, whole)
            seen.expect("rows", same, f"{how} on {threads} threads, {says} ({kind} values)")


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


def _products(contract: Contract, args: Args) -> int:
    """Bytes of all products that a matrix product of the rows would sum, 0 without one."""
    terms = [t.numel() for _, t in _others(contract, args) if t.dim() > 1 and t.shape[-1] == WIDTH]
    rows = regroup.count(contract, args)
    return rows * max(terms, default=0) * contract.key(args).element_size()


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


def _differing(found: Results, whole: Results) -> str:
    off = [
        i
        for i, pair in enumerate(zip(regroup.each_row(found), regroup.each_row(whole)))
        if not same_bits(*pair)
    ]
    return f"{len(off)} of {len(whole[0])} rows differ, the first is {off[:1]}"
