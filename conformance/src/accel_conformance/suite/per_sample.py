"""One case for every implementation, dtype and sample: the rule the areas over ops share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial

import torch

from accel.contracts import Contract, Sample
from accel_conformance.case import Case, Evidence
from accel_conformance.subject import Subject
from accel_conformance.target import Args, Target, each, name_of

# check(target, sample's name, arguments, evidence)
Check = Callable[[Target, str, Args, Evidence], None]


def per_sample(
    area: str,
    subject: Subject,
    check: Check,
    *,
    required: bool = True,
    of: Callable[[Target], bool] = lambda target: True,
    over: Callable[[Contract, Args], bool] = lambda contract, args: True,
) -> Iterator[Case]:
    """Cases ``area/op/implementation/dtype/sample`` of the targets ``of`` takes, with the samples
    whose arguments ``over`` takes."""
    for target in filter(of, subject.targets):
        samples = [
            sample
            for sample, args in outlines(target.contract.samples)
            if over(target.contract, args)
        ]
        for dtype in subject.dtypes(target):
            for sample in samples:
                yield Case(
                    f"{area}/{target.op}/{target.impl.id}/{name_of(dtype)}/{sample.name}",
                    partial(_run, check, target, sample, dtype),
                    target.op,
                    target.impl.id,
                    name_of(dtype),
                    required,
                )


@cache
def outlines(samples: Callable[[], Iterable[Sample]]) -> list[tuple[Sample, Args]]:
    """A contract's samples, each with arguments that have shapes and no values, in a half
    precision: what has another dtype beside it shows."""
    nowhere = torch.device("meta")
    return [(sample, sample.make(torch.bfloat16, nowhere)) for sample in samples()]


def _run(check: Check, target: Target, sample: Sample, dtype: torch.dtype, seen: Evidence) -> None:
    with target.alone():
        args = sample.make(dtype, target.device)
        seen.input = target.told(args)
        check(target, sample.name, args, seen)


def has_elements(contract: Contract, args: Args) -> bool:
    """Neither the rows nor a result are empty."""
    results = each(contract.fake(*args))
    return bool(args[0].numel() and all(result.numel() for result in results))
