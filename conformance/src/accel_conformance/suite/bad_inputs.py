"""Arguments that break a contract: they raise, say what is wrong, and do no harm."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from accel.contracts import BadInput
from accel.errors import OpArgumentError
from accel_conformance.case import Case, Evidence
from accel_conformance.subject import Subject
from accel_conformance.target import Target, name_of, same_bits


def cases(subject: Subject) -> Iterator[Case]:
    for target in subject.targets:
        # One dtype: what is refused does not depend on it.
        for dtype in subject.dtypes(target)[:1]:
            for bad in target.contract.bad_inputs():
                yield Case(
                    f"bad_inputs/{target.op}/{target.impl.id}/{name_of(dtype)}/{bad.name}",
                    partial(check, target, bad, dtype),
                    target.op,
                    target.impl.id,
                    name_of(dtype),
                )


def check(target: Target, bad: BadInput, dtype: torch.dtype, seen: Evidence) -> None:
    good = next(iter(target.contract.samples())).make(dtype, target.device)
    with target.alone():
        if target.declines(seen, good):
            return
        before = target.call(good)
        _raises(seen, target, bad, dtype)
        after = target.call(good)
        seen.ran = target.bound(good)
    seen.expect("unharmed", same_bits(before, after), "a good call then gave other bits")


def _raises(seen: Evidence, target: Target, bad: BadInput, dtype: torch.dtype) -> None:
    args = bad.make(dtype, target.device)
    seen.input = target.told(args)
    try:
        target.call(args)
    except (OpArgumentError, TypeError) as error:
        says = f"{bad.says!r} is not in the message {str(error)!r}"
        seen.expect("bad_input", bad.says in str(error), says)
    except Exception as error:
        says = f"must raise OpArgumentError or TypeError; raised {type(error).__name__}: {error}"
        seen.expect("bad_input", False, says)
    else:
        seen.expect("bad_input", False, f"accepted; must raise and say {bad.says!r}")
