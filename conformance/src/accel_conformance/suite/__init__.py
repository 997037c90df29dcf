"""The checks, and the rule that makes cases of them.

accelerator/     the device layer, one case per promise: accelerator/...
builders.py      what implementations are offered and refused: builders/op/implementation/...
builds.py        what builders compile, under a kill and a race: builders/cached/library
numerics.py      every op, implementation, dtype, sample: ops/...
gradients.py     the same, differentiated: gradients/...
bad_inputs.py    arguments that must be refused: bad_inputs/op/implementation/...
guards.py        values replaced, NaN beside, torch left as it was: guards/op/...
large.py         results of a million elements, long sums: large/op/...
rows.py          shape invariance where it is claimed: rows/...
padded.py        rows among others that hold NaN, sequences in padding: rows/...
features.py      some of a product's output features, where rows are invariant: features/...
agreement.py     hidden rows and their logits have the same log-probabilities: agreement/...
special.py       NaN and infinity: special/...
watched.py       every op in what watches torch: opcheck, compilation, transforms: torch/...
engine/          the hybrid engine, for every architecture it reads: engine/policy/dtype/...
integers.py      whole numbers, whose sums are exact: integers/...
drawn.py         samples varied as hypothesis draws (variations.py says how): drawn/...
regroup.py       which arguments have rows, and an op on some of them
"""

from __future__ import annotations

from accel_conformance.case import Case
from accel_conformance.subject import Subject
from accel_conformance.suite import (
    accelerator,
    agreement,
    bad_inputs,
    builders,
    builds,
    drawn,
    engine,
    features,
    gradients,
    guards,
    integers,
    large,
    numerics,
    padded,
    rows,
    special,
    watched,
)

AREAS = (
    accelerator, builders, builds, numerics, integers, large, guards, gradients, bad_inputs, rows,
    padded, features, agreement, special, drawn, watched, engine,
)  # fmt: skip


def cases(subject: Subject) -> list[Case]:
    """All cases of a subject, in the order they are run."""
    return [case for area in AREAS for case in area.cases(subject)]
