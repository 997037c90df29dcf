"""NaN and infinity: they stay in the rows they came in, and are not lost there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from accel_conformance.case import Case, Evidence
from accel_conformance.measure import exact
from accel_conformance.oracles import ORACLES
from accel_conformance.subject import Subject
from accel_conformance.suite.per_sample import has_elements, per_sample, row_count
from accel_conformance.target import Args, Target, same_bits

NAN_ROW, INFINITE_ROW = 1, 2
LAST = -1  # the column they are put in: a kernel's tail sees it


def cases(subject: Subject) -> Iterator[Case]:
    return per_sample(
        "special",
        subject,
        check,
        over=lambda contract, args: has_elements(contract, args) and row_count(args) > INFINITE_ROW,
    )


def check(target: Target, sample: str, args: Args, seen: Evidence) -> None:
    if target.declines(seen, args):
        return
    x, *others = args
    x = x.clone()  # one row seen many times cannot be spoilt in one place
    clean = _rows(target.call((x, *others)))
    spoilt = _spoilt(x)
    found = _rows(target.call((spoilt, *others)))
    seen.ran = target.bound(args)

    elsewhere = [i for i in range(len(clean)) if i not in (NAN_ROW, INFINITE_ROW)]
    touched = [i for i in elsewhere if not same_bits(clean[i], found[i])]
    seen.expect("contained", not touched, f"reached row {touched[:1]} ({len(touched)} in all)")
    seen.expect("contained", bool(found[NAN_ROW].isnan().all()), "a NaN was lost in its own row")
    _infinity_kept(seen, target, (spoilt, *others), found)


def _infinity_kept(seen: Evidence, target: Target, args: Args, found: Tensor) -> None:
    """Where float64 says infinity, so does the result. Where it says NaN, as of ``inf * 0`` at
    an activation's far end, an implementation may know the limit."""
    with np.errstate(all="ignore"):
        expected = ORACLES[target.op].value(*map(exact, args))
    row = expected.reshape(len(found), -1)[INFINITE_ROW]
    infinite = np.isinf(row)
    kept = np.asarray(exact(found[INFINITE_ROW]))[infinite] == row[infinite]
    seen.expect("contained", bool(kept.all()), "an infinity was lost in its own row")


def _spoilt(x: Tensor) -> Tensor:
    spoilt = x.clone()
    for row, value in ((NAN_ROW, math.nan), (INFINITE_ROW, math.inf)):
        at: Any = (*np.unravel_index(row, x.shape[:-1]), LAST)
        spoilt[at] = value
    return spoilt


def _rows(result: Tensor) -> Tensor:
    return result.reshape(-1, result.shape[-1])
