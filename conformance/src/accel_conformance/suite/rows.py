"""Shape invariance, bitwise, of implementations that claim it.

Each row alone on one thread is what every other arrangement of rows must reproduce. Values are
made so that a sum taken in another order shows: pairs of large columns cancel exactly, and what is
left is as small as the roundings on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from accel.contracts.inputs import Draw
from accel.testing import HOST
from accel_conformance.case import Case, Evidence
from accel_conformance.subject import Subject
from accel_conformance.suite.per_sample import has_elements, per_sample
from accel_conformance.target import Args, Target, same_bits

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
        over=has_elements,
    )


def check(target: Target, sample: str, args: Args, seen: Evidence) -> None:
    if target.declines(seen, args):
        return
    seen.ran = target.bound(args)
    for make in (_plain, _cancelling):
        x, others = make(target, sample, args)
        with _threads(1):
            # In memory of its own: where a row lies must not matter either.
            alone = torch.cat([target.call((x[[i]], *others)) for i in range(ROWS)])
        for threads in THREADS if target.device.type == HOST else THREADS[:1]:
            with _threads(threads):
                differ = _difference(target, x, others, alone)
            kind = f"{make.__name__[1:]} values, {threads} thread(s)"
            seen.expect("rows", not differ, f"{differ} ({kind})")


def _difference(target: Target, x: Tensor, others: list[Any], alone: Tensor) -> str:
    """The first arrangement of rows that does not reproduce ``alone``; empty if all do."""
    for rows, where in _arrangements(x):
        found = target.call((rows, *others))
        found = found.reshape(-1, found.shape[-1])
        wanted = alone[where : where + len(found)]
        if not same_bits(found, wanted):
            rows_off = [where + i for i in range(len(found)) if not same_bits(found[i], wanted[i])]
            return (
                f"of {list(rows.shape)} from row {where}, {len(rows_off)} rows differ from the "
                f"same rows alone, the first is {rows_off[0]}"
            )
    return ""


def _arrangements(x: Tensor) -> Iterator[tuple[Tensor, int]]:
    """(rows, number of the first): blocks of every height from the top and from the bottom, and
    rows in two dimensions."""
    for height in HEIGHTS:
        yield x[:height], 0
        yield x[ROWS - height :], ROWS - height
    yield x.reshape(3, ROWS // 3, -1), 0


def _plain(target: Target, sample: str, args: Args) -> tuple[Tensor, list[Any]]:
    """The sample's arguments with its rows replaced by ``ROWS`` new ones."""
    x, *others = args
    new = Draw(target.op).plain(f"{sample}.rows", (ROWS, x.shape[-1]), x.dtype, target.device)
    return new, others


def _cancelling(target: Target, sample: str, args: Args) -> tuple[Tensor, list[Any]]:
    """The same with the first columns large, and the next as many their negatives; weights, which
    are the matrices as wide as a row, have equal columns there."""
    x, others = _plain(target, sample, args)
    half = (x.shape[-1] - 1) // 2
    x[:, :half] *= LARGE
    x[:, half : 2 * half] = -x[:, :half]
    return x, [_paired(other, x.shape[-1], half) for other in others]


def _paired(other: Any, width: int, half: int) -> Any:
    if not isinstance(other, Tensor) or other.dim() != 2 or other.shape[-1] != width:
        return other
    paired = other.clone()
    paired[:, half : 2 * half] = paired[:, :half]
    return paired


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """torch's threads on the host, of no matter to any other device."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
