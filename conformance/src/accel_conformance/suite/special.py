"""NaN and infinity: they stay in the rows they came in, and are not lost there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from accel_conformance.case import Case, Evidence
from accel_conformance.measure import Array, exact
from accel_conformance.oracles import ORACLES
from accel_conformance.subject import Subject
from accel_conformance.suite import regroup
from accel_conformance.suite.per_sample import has_elements, per_sample
from accel_conformance.target import Args, Target, each, same_bits

NAN_ROW, INFINITE_ROW = 1, 2
LAST = -1  # the column they are put in: a kernel's tail sees it


def cases(subject: Subject) -> Iterator[Case]:
    return per_sample(
        "special",
        subject,
        check,
        required=False,
        over=lambda contract, args: (
            has_elements(contract, args)
            and args[0].is_floating_point()  # ids, of embedding, hold no NaN
            and regroup.count(contract, args) > INFINITE_ROW
        ),
    )


def check(target: Target, sample: str, args: Args, seen: Evidence) -> None:
    if target.declines(seen, args):
        return
    x, *others = args
    x = x.clone()  # one row seen many times cannot be spoilt in one place
    leading = regroup.leading(target.contract, args)
    rows = regroup.count(target.contract, args)
    clean = regroup.by_row(target.call((x, *others)), rows)
    spoilt = _spoilt(x, leading)
    found = regroup.by_row(target.call((spoilt, *others)), rows)
    seen.ran = target.bound(args)

    elsewhere = [i for i in range(rows) if i not in (NAN_ROW, INFINITE_ROW)]
    pairs = list(zip(regroup.each_row(clean), regroup.each_row(found)))
    touched = [i for i in elsewhere if not same_bits(*pairs[i])]
    seen.expect("contained", not touched, f"reached row {touched[:1]} ({len(touched)} in all)")
    with np.errstate(all="ignore"):
        expected = each(ORACLES[target.op].value(*map(exact, (spoilt, *others))))
    for result, wanted in zip(found, expected, strict=True):
        _kept(seen, np.asarray(exact(result)), wanted.reshape(rows, -1))


def _kept(seen: Evidence, found: Array, wanted: Array) -> None:
    """Where float64 says NaN of the row that had one, so does the result, and infinity likewise.
    Where it says NaN of the row that had an infinity, as of ``inf * 0`` at an activation's far
    end, an implementation may know the limit."""
    lost = np.isnan(wanted[NAN_ROW]) & ~np.isnan(found[NAN_ROW])
    seen.expect("contained", not lost.any(), "a NaN was lost in its own row")
    infinite = np.isinf(wanted[INFINITE_ROW])
    kept = found[INFINITE_ROW][infinite] == wanted[INFINITE_ROW][infinite]
    seen.expect("contained", bool(kept.all()), "an infinity was lost in its own row")


def _spoilt(x: Tensor, leading: tuple[int, ...]) -> Tensor:
    """With a NaN and an infinity each at the end of a row."""
    spoilt = x.clone()
    for row, value in ((NAN_ROW, math.nan), (INFINITE_ROW, math.inf)):
        own = (LAST,) * (x.dim() - len(leading))
        at: Any = (*np.unravel_index(row, leading), *own)
        spoilt[at] = value
    return spoilt
