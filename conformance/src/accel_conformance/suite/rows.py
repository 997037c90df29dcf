"""Shape invariance, bitwise, of implementations that claim it.

Each row alone on one thread is what every other arrangement of rows must reproduce: of attention, a
prompt at once and in parts what its decode steps gave. Values are made so that a sum taken in
another order shows: pairs of large columns cancel exactly, and what is left is as small as the
roundings on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from accel.contracts import Contract
from accel.testing import HOST
from accel_conformance.case import Case, Evidence
from accel_conformance.subject import Subject
from accel_conformance.suite import regroup
from accel_conformance.suite.per_sample import has_elements, per_sample
from accel_conformance.target import Args, Results, Target, same_bits

ROWS = 33
HEIGHTS = (1, 2, 3, 17, ROWS)
THREADS = (1, 2)
LARGE = 4096.0  # four of it, the largest of normal values, still fit float16


def cases(subject: Subject) -> Iterator[Case]:
    return per_sample(
        "rows",
        subject,
        check,
        of=lambda target: target.impl.shape_invariant,
        over=lambda contract, args: (
            has_elements(contract, args) and regroup.separable(contract, args)
        ),
    )


def check(target: Target, sample: str, args: Args, seen: Evidence) -> None:
    if target.declines(seen, args):
        return
    seen.ran = target.bound(args)
    plain = regroup.new_rows(target.contract, args, ROWS, sample)
    for kind, made in {"plain": plain, "cancelling": cancelling(plain)}.items():
        rows = regroup.count(target.contract, made)
        with on_threads(1):
            parts = (regroup.alone(target.contract, made, i) for i in range(rows))
            alone = [regroup.by_row(target.call(part), 1) for part in parts]
        wanted = tuple(map(torch.cat, zip(*alone)))
        for threads in THREADS if target.device.type == HOST else THREADS[:1]:
            with on_threads(threads):
                differ = _difference(target, made, wanted)
            seen.expect("rows", not differ, f"{differ} ({kind} values, {threads} thread(s))")


def _difference(target: Target, args: Args, alone: Results) -> str:
    """The first arrangement of rows that does not reproduce ``alone``; empty if all do."""
    for what, arranged, first, rows in _arrangements(target.contract, args):
        found = regroup.by_row(target.call(arranged), rows)
        wanted = tuple(result[first : first + rows] for result in alone)
        if not same_bits(found, wanted):
            pairs = zip(regroup.each_row(found), regroup.each_row(wanted))
            off = [first + i for i, pair in enumerate(pairs) if not same_bits(*pair)]
            return f"of {what}, {len(off)} differ from the same rows alone, the first is {off[0]}"
    return ""


def _arrangements(contract: Contract, args: Args) -> Iterator[tuple[str, Args, int, int]]:
    """(in words, arguments, first row, count of rows): blocks of every height from the top and
    from the bottom, and all rows laid out otherwise."""
    rows = regroup.count(contract, args)
    for height in sorted({min(height, rows) for height in (*HEIGHTS, rows)}):
        for first in (0, rows - height):
            part = regroup.take(contract, args, first, first + height)
            yield f"{height} rows from row {first}", part, first, height
    yield "all rows laid out otherwise", regroup.otherwise(contract, args), 0, rows


def cancelling(args: Args) -> Args:
    """The same with the first columns large, and the next as many their negatives; weights, which
    are the tensors as wide as a row, have equal columns there."""
    x, *others = args
    if not x.is_floating_point():
        return args
    half = (x.shape[-1] - 1) // 2
    x = x.clone()
    x[..., :half] *= LARGE
    x[..., half : 2 * half] = -x[..., :half]
    return x, *(_paired(other, x.shape[-1], half) for other in others)


def _paired(other: Any, width: int, half: int) -> Any:
    if not isinstance(other, Tensor) or other.dim() < 2 or other.shape[-1] != width:
        return other
    paired = other.clone()
    paired[..., half : 2 * half] = paired[..., :half]
    return paired


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """torch's threads on the host, of no matter to any other device."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
