"""Output features, bitwise, of implementations that claim shape invariance.

Ranks that share a product compute some of its output features each: by views of the weight's rows,
of any number, from any of them on. What they make must be, element by element, what the whole
product has: it is put side by side, and nothing evens out what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from accel.contracts import Contract
from accel.testing import HOST
from accel_conformance.case import Case, Evidence
from accel_conformance.subject import Subject
from accel_conformance.suite import regroup
from accel_conformance.suite.per_sample import has_elements, per_sample
from accel_conformance.suite.rows import THREADS, cancelling, on_threads
from accel_conformance.target import Args, Target, each, same_bits

# Of each op, the arguments with output features, and which of their dimensions counts them. Both
# layouts of quantized_linear keep a feature's numbers and scales in a row.
FEATURES: Mapping[str, Mapping[str, int]] = {
    "linear": {"w": 0, "b": 0},
    "gated_linear": {"w_gate": 0, "w_up": 0, "b_gate": 0, "b_up": 0},
    "lora_linear": {"w": 0, "lora_b": 0, "b": 0},
    "quantized_linear": {"w": 0, "scales": 0, "b": 0},
    "grouped_linear": {"w": 1, "b": 1},
}
WIDTH, ROWS = 83, 5  # as many features, if the sample has any, of as many rows
# Which are computed by themselves: few and many, where blocks of memory begin and where not.
PARTS = ((0, 1), (WIDTH - 1, WIDTH), (0, 7), (16, 48), (0, 42), (42, WIDTH), (3, WIDTH))


def cases(subject: Subject) -> Iterator[Case]:
    return per_sample(
        "features",
        subject,
        check,
        of=lambda target: target.impl.shape_invariant and target.op in FEATURES,
        over=has_elements,
    )


def check(target: Target, sample: str, args: Args, seen: Evidence) -> None:
    if target.declines(seen, args):
        return
    seen.ran = target.bound(args)
    plain = widened(target.contract, regroup.new_rows(target.contract, args, ROWS, sample))
    for kind, made in {"plain": plain, "cancelling": cancelling(plain)}.items():
        with on_threads(1):
            (whole,) = each(target.call(made))
        for threads in THREADS if target.device.type == HOST else THREADS[:1]:
            with on_threads(threads):
                differ = [
                    part
                    for part in PARTS
                    if not same_bits(
                        each(target.call(some(target.contract, made, slice(*part)))),
                        (whole[..., slice(*part)],),
                    )
                ]
            says = f"features {differ} differ from the whole's ({kind} values, {threads} thread(s))"
            seen.expect("features", not differ, says)


def widened(contract: Contract, args: Args) -> Args:
    """With :data:`WIDTH` output features: the sample's own, again and again."""

    def again(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
        places = torch.arange(WIDTH, device=tensor.device) % tensor.shape[dimension]
        return tensor.index_select(dimension, places)

    return _of_features(contract, args, again)


def some(contract: Contract, args: Args, part: slice) -> Args:
    """Of these output features alone, by views."""
    return _of_features(
        contract, args, lambda t, dimension: t.narrow(dimension, part.start, part.stop - part.start)
    )


def _of_features(contract: Contract, args: Args, change: Any) -> Args:
    named: dict[str, Any] = dict(zip(contract.parameters, args))
    for name, dimension in FEATURES[contract.name].items():
        if named[name] is not None:
            named[name] = change(named[name], dimension)
    return tuple(named.values())
