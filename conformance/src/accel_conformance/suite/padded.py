"""Padding invariance, bitwise, of implementations that claim shape invariance.

Rows stand among rows of NaN; sequences of attention are packed, padded left and padded right, with
NaN where nobody may look. Each arrangement has the bits of the rows by themselves. And within a
sequence a query has the bits it has whatever is behind it, or outside its window: a step that reads
no more than it sees has them too. (What a mask hides is read, and 0 times NaN is NaN.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from accel.contracts import Contract, Sample
from accel.contracts.inputs import Draw
from accel_conformance.case import Case, Evidence
from accel_conformance.subject import Subject
from accel_conformance.suite import regroup
from accel_conformance.target import Args, Target, name_of, same_bits

ROWS = 257
LENGTHS = (67, 1, 33, 7, 130)  # of sequences
HEADS, KEY_HEADS, HEAD_DIM = 4, 2, 40
# (arguments, which of their rows are the sequences', in order) of what is said in words
Arrangement = tuple[str, Args, Tensor]


def cases(subject: Subject) -> Iterator[Case]:
    for target in subject.targets:
        arranged = _arrange(target.contract)
        if not target.impl.shape_invariant or arranged is None:
            continue
        for dtype in subject.dtypes(target):
            about = f"rows/{target.op}/{target.impl.id}/{name_of(dtype)}"
            who = (target.op, target.impl.id, name_of(dtype))
            yield Case(f"{about}/padded", partial(padded, target, dtype, arranged), *who)
            if target.op == "attention":
                yield Case(f"{about}/unseen", partial(unseen, target, dtype), *who)


def padded(target: Target, dtype: torch.dtype, arranged: Any, seen: Evidence) -> None:
    arrangements = arranged(target.contract, dtype, target.device)
    with target.alone():
        _, packed, order = next(arrangements)
        if target.declines(seen, packed):
            return
        seen.ran = target.bound(packed)
        wanted = regroup.by_row(target.call(packed), len(order))
        for where, args, rows in arrangements:
            everything = regroup.by_row(target.call(args), regroup.count(target.contract, args))
            found = tuple(result[rows] for result in everything)
            says = f"{where}, rows have other bits than by themselves"
            seen.expect("padded", same_bits(found, wanted), says)


# What is said in words, options, the keys that are spoilt, and the queries that do not see them;
# of one sequence
SPOILT = (
    ("behind a query", {}, slice(40, None), slice(0, 40)),
    ("before its window", {"window": 9}, slice(0, 20), slice(28, None)),
    ("outside its window", {"window": 9, "causal": False}, slice(30, 31), slice(39, None)),
)


def unseen(target: Target, dtype: torch.dtype, seen: Evidence) -> None:
    contract, length = target.contract, LENGTHS[0]
    q, k, v = (t[:length] for t in _drawn(contract, dtype, target.device).values())
    # With as many others that are empty as it has queries less one, which are a query each if
    # somebody only counts.
    empty = [[length, 0, length, 0]] * (length - 1)
    few, many = ([[0, length, 0, length], *more] for more in ([], empty))
    with target.alone():
        for (where, options, hidden, rows), spans in product(SPOILT, (few, many)):
            spans = torch.tensor(spans, device=target.device)
            args = contract.bind((q, k, v, spans), options)
            if target.declines(seen, args):
                return
            seen.ran = target.bound(args)
            (wanted,) = regroup.by_row(target.call(args), length)
            for of, value in ((k, math.nan), (v, math.nan), (v, math.inf)):
                spoilt = of.clone()
                spoilt[hidden] = value
                others = (spoilt, v) if of is k else (k, spoilt)
                args = contract.bind((q, *others, spans), options)
                (found,) = regroup.by_row(target.call(args), length)
                says = f"a {value} {where} changes its bits"
                seen.expect("unseen", same_bits((found[rows],), (wanted[rows],)), says)
                own = found[hidden].isfinite().all(-1)
                seen.expect("contained", not own.any(), f"a {value} was lost to who sees it")


def _drawn(contract: Contract, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """q, k and v of sequences one behind the other."""
    shapes = {"q": (HEADS, HEAD_DIM), "k": (KEY_HEADS, HEAD_DIM), "v": (KEY_HEADS, HEAD_DIM)}
    return {
        name: Draw(contract.name).plain(f"padded.{name}", (sum(LENGTHS), *shape), dtype, device)
        for name, shape in shapes.items()
    }


def _arrange(contract: Contract) -> Any:
    """How rows of the op are put among others; None if other arguments speak of the rows."""
    if contract.name == "attention":
        return _sequences
    named = contract.parameters.keys()
    return None if named & {"spans", "ends"} or contract.name == "transformer_layer" else _between


def _between(contract: Contract, dtype: torch.dtype, device: torch.device) -> Iterator[Arrangement]:
    """Rows by themselves, then each behind one of NaN, then each before one."""
    sample: Sample = next(iter(contract.samples()))
    args = regroup.new_rows(contract, sample.make(dtype, device), ROWS, "padded")
    order = torch.arange(ROWS, device=device)
    yield "", args, order
    yield "behind rows of NaN", regroup.doubled(contract, args, first=True), 2 * order + 1
    yield "before rows of NaN", regroup.doubled(contract, args, first=False), 2 * order


def _sequences(
    contract: Contract, dtype: torch.dtype, device: torch.device
) -> Iterator[Arrangement]:
    """Sequences packed one behind the other, then in a batch as long as the longest."""
    lengths = torch.tensor(LENGTHS)
    longest, batch = int(lengths.max()), len(LENGTHS)
    packed = _drawn(contract, dtype, device)
    lines = torch.arange(batch) * longest
    for where, rows, starts in (
        ("", sum(LENGTHS), lengths.cumsum(0) - lengths),
        ("padded on the right", batch * longest, lines),
        ("padded on the left", batch * longest, lines + longest - lengths),
    ):
        real = torch.cat([s + torch.arange(n) for s, n in zip(starts, LENGTHS)]).to(device)
        laid = {
            name: t.new_full((rows, *t.shape[1:]), math.nan).index_copy(0, real, t)
            for name, t in packed.items()
        }
        spans = torch.stack((starts, lengths, starts, lengths), 1).to(device)
        yield where, contract.bind((), {**laid, "spans": spans}), real
