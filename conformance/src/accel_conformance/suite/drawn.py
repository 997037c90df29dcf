"""Inputs that nobody thought of: samples varied as hypothesis draws, right to each element's bound.

The same are drawn every time, of one ``--seed``. What fails is shrunk to the sample that fails with
the least variation, and told in words.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial

import hypothesis
import torch
from hypothesis import HealthCheck, Phase

from accel_conformance.case import Broken, Case, Evidence
from accel_conformance.expected import expected
from accel_conformance.subject import Subject
from accel_conformance.suite.numerics import componentwise, inputs_kept, promised
from accel_conformance.suite.variations import Variation, kinds, variations
from accel_conformance.target import Target, each, name_of, storage_bits, tensors

EXAMPLES = 3  # of each case, the first the simplest
LOOKED_AT = 40  # with those that could be simpler than one that fails

_SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    print_blob=False,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


class _Wrong(AssertionError):
    """An example that breaks rules; hypothesis looks for a simpler one."""

    def __init__(self, broken: list[Broken]) -> None:
        self.broken = broken
        super().__init__("; ".join(map(str, broken)))


def cases(subject: Subject) -> Iterator[Case]:
    for target in subject.targets:
        for dtype in subject.dtypes(target):
            for kind in kinds(target.op):
                id = f"drawn/{target.op}/{target.impl.id}/{name_of(dtype)}/{kind}"
                seed = zlib.crc32(f"{subject.seed}/{id}".encode())
                yield Case(
                    id,
                    partial(check, target, dtype, kind, seed),
                    target.op,
                    target.impl.id,
                    name_of(dtype),
                    required=False,
                )


def check(target: Target, dtype: torch.dtype, kind: str, seed: int, seen: Evidence) -> None:
    looks: dict[Variation, Evidence] = {}

    def look(variation: Variation) -> None:
        if variation not in looks and len(looks) < LOOKED_AT:
            looks[variation] = _look(target, variation, dtype)
        if variation in looks and looks[variation].broken:
            raise _Wrong(looks[variation].broken)

    drawn = hypothesis.given(variations(target.op, kind))(look)
    try:
        hypothesis.seed(seed)(_SETTINGS(drawn))()
    except _Wrong as wrong:
        seen.broken += wrong.broken
    for one in looks.values():
        seen.rules |= one.rules
        seen.ran = one.ran or seen.ran
        if one.own_share is not None and not seen.broken:
            seen.used_alone(one.own_share)
    if not seen.rules:
        seen.refused([refusal for one in looks.values() for refusal in one.refusals])


def _look(target: Target, variation: Variation, dtype: torch.dtype) -> Evidence:
    seen = Evidence()
    with target.alone():
        _try(target, variation, dtype, seen)
    seen.broken = [Broken(b.rule, f"{variation}: {b.says}") for b in seen.broken]
    return seen


def _try(target: Target, variation: Variation, dtype: torch.dtype, seen: Evidence) -> None:
    args = variation.make(target.contract, dtype, target.device)
    if target.declines(seen, args):
        return
    before = [storage_bits(tensor) for tensor in tensors(args)]
    try:
        found = target.call(args)
        seen.ran = target.bound(args)
    except Exception as error:
        seen.expect("works", False, f"raised {type(error).__name__}: {error}")
    else:
        inputs_kept(seen, target, args, before)
        if promised(seen, found, each(target.contract.fake(*args))):
            componentwise(seen, found, expected(target.contract, args, random=False))
