"""The hybrid engine on this backend: what it promises, for every architecture it can read.

models.py    small models, made of a policy and transformers' configuration
values.py    a token's value: the same bits wherever it is computed
faithful.py  the model that was given, and no other
modes.py     training and generating: what either does to the other

A model that the engine refuses on this backend, as where an op has no shape-invariant
implementation, is a case that is refused, with the engine's own reasons.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch

import accel
from accel.engine import ModelPolicy
from accel.engine.policy import known
from accel_conformance.case import Case, Evidence
from accel_conformance.subject import Subject
from accel_conformance.suite.engine import faithful, modes, values
from accel_conformance.suite.engine.models import Trial, declines, made
from accel_conformance.target import name_of

DTYPES = (torch.float32, torch.bfloat16)
CHECKS: dict[str, Callable[[Trial, Evidence], None]] = {
    **values.CHECKS,
    **modes.CHECKS,
    **faithful.CHECKS,
}


def cases(subject: Subject) -> Iterator[Case]:
    dtypes = [dtype for dtype in DTYPES if dtype in subject.accelerator.supported_dtypes()]
    policies: dict[str, ModelPolicy] = {}
    for policy in known():  # a plugin's before the core's of the same name
        if not policy.encodes:  # what follows is about generating
            policies.setdefault(policy.name, policy)
    for policy in policies.values():
        for dtype in dtypes:
            for name, check in CHECKS.items():
                yield Case(
                    f"engine/{policy.name}/{name_of(dtype)}/{name}",
                    partial(_run, check, policy, dtype, subject.device),
                    dtype=name_of(dtype),
                )


def _run(
    check: Callable[[Trial, Evidence], None], policy: ModelPolicy, dtype: torch.dtype,
    device: torch.device, seen: Evidence,
) -> None:  # fmt: skip
    with warnings.catch_warnings(), accel.ops.use(fallback="error"):
        warnings.simplefilter("ignore")  # transformers' own, of settings that small models have
        if declines(seen, policy):
            return
        trial = made(policy, dtype, device)
        plan = accel.plan(trial.model)
        if plan.refusals:
            seen.refused(plan.refusals)
            return
        seen.ran = " ".join(sorted(set(plan.served_by.values())))
        check(trial, seen)
