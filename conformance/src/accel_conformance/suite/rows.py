"""Shape invariance, bitwise, of implementations that claim it.

Each row alone on one thread is what every other arrangement of rows must reproduce. Values are
made so that a sum taken in another order shows: pairs of large columns cancel exactly, and what is
left is as small as the roundings on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accel.contracts.inputs import Draw
from accel.testing import HOST
from torch import Tensor

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
    for kind, (x, *others) in {"plain": _plain(target, sample, args),
                               "cancelling": _cancelling(target, sample, args)}.items():  # fmt: skip
        with _threads(1):
            # In memory of its own: where a row lies must not matter either.
            alone = torch.cat([target.call((x[[i]], *others)) for i in range(ROWS)])
        for threads in THREADS if target.device.type == HOST else THREADS[:1]:
            with _threads(threads):
                _compare(seen, target, x, others, alone, f"{kind} values, {threads} thread(s)")


def _compare(
    seen: Evidence, target: Target, x: Tensor, others: list[object], alone: Tensor, where: str
) -> None:
    """Blocks of every height, from the top and from the bottom, and rows in two dimensions."""
    for height in HEIGHTS:
        for top in {0, ROWS - height}:
            block = target.call((x[top : top + height], *others))
            _same(seen, block, alone[top : top + height], f"{height} rows from {top}, {where}")
    nested = target.call((x.reshape(3, ROWS // 3, -1), *others))
    _same(seen, nested.reshape(alone.shape), alone, f"3 times {ROWS // 3} rows, {where}")


def _same(seen: Evidence, block: Tensor, alone: Tensor, where: str) -> None:
    if same_bits(block, alone):
        return
    differ = [i for i in range(len(alone)) if not same_bits(block[i], alone[i])]
    says = f"{len(differ)} rows differ from the same rows alone, the first {differ[:1]} ({where})"
    seen.expect("rows", False, says)


def _plain(target: Target, sample: str, args: Args) -> list[object]:
    """The sample's arguments with its rows replaced by ``ROWS`` new ones."""
    x, *others = args
    new = Draw(target.op).plain(f"{sample}.rows", (ROWS, x.shape[-1]), x.dtype, target.device)
    return [new, *others]


def _cancelling(target: Target, sample: str, args: Args) -> list[object]:
    """The same with the first columns large, and the next as many their negatives; weights, which
    are the matrices as wide as a row, have equal columns there."""
    x, *others = _plain(target, sample, args)
    assert isinstance(x, Tensor)
    half = (x.shape[-1] - 1) // 2
    x[:, :half] *= LARGE
    x[:, half : 2 * half] = -x[:, :half]
    return [x, *(_paired(other, x.shape[-1], half) for other in others)]


def _paired(other: object, width: int, half: int) -> object:
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
