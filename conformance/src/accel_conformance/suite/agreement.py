"""Where sampler and trainer meet: of hidden rows and of their logits come the same bits.

A sampler has the logits of linear, a trainer has logprob compute them. Implementations of one id
that claim shape invariance agree on them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

import accel
from accel_conformance.case import Case, Evidence
from accel_conformance.subject import Subject
from accel_conformance.suite.per_sample import per_sample
from accel_conformance.target import Args, Target, each, same_bits

LOGPROB, LINEAR = "logprob", "linear"
WEIGHT = 2  # its place among logprob's arguments


def cases(subject: Subject) -> Iterator[Case]:
    linear = {target.impl.id for target in subject.targets if target.op == LINEAR}
    return per_sample(
        "agreement",
        subject,
        check,
        of=lambda target: (
            target.op == LOGPROB and target.impl.shape_invariant and target.impl.id in linear
        ),
        over=lambda contract, args: args[WEIGHT] is not None,
    )


def check(target: Target, sample: str, args: Args, seen: Evidence) -> None:
    if target.declines(seen, args):
        return
    x, ids, w, b, *adjustment = args
    wide = torch.promote_types(x.dtype, torch.float32)
    with accel.ops.use(f"{LINEAR}={target.impl.id}", exact=False):
        logits = accel.ops.linear(x, w, b, out_dtype=wide)
    of_logits = target.call((logits, ids, None, None, *adjustment))
    seen.ran = target.bound(args)
    for name, one, other in zip(("logprob", "entropy"), target.call(args), of_logits, strict=True):
        says = f"{name} of hidden rows is not that of the logits that linear has of them"
        seen.expect("agreement", same_bits(each(one), each(other)), says)
