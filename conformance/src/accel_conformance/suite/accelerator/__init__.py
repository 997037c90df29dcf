"""The device layer: every member of accel.Accelerator keeps what it is documented to mean.

devices.py       identity, indices, names, facts     dtypes.py    what it computes in
streams.py       streams and events                  memory.py    bytes, peaks, pinning
randomness.py    seeds and states                    services.py  profiling, compiling, launching
abilities.py     every capability, claimed or not
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from accel.accelerator import CAPABILITIES
from accel_conformance.case import Case
from accel_conformance.subject import Subject
from accel_conformance.suite.accelerator import (
    abilities,
    devices,
    dtypes,
    memory,
    randomness,
    services,
    streams,
)
from accel_conformance.target import name_of

MODULES = (devices, streams, memory, randomness, services)
OPTIONAL = (services,)  # whose cases an expectations file may skip


def cases(subject: Subject) -> Iterator[Case]:
    acc = subject.accelerator
    for module in MODULES:
        for check in module.CHECKS:
            name = f"accelerator/{check.__name__}"
            yield Case(name, partial(check, acc), required=module not in OPTIONAL)
    yield Case("accelerator/dtypes_agree", partial(dtypes.dtypes_agree, acc))
    for dtype in acc.supported_dtypes():
        yield Case(f"accelerator/computes/{name_of(dtype)}", partial(dtypes.computes, acc, dtype))
    yield Case("accelerator/capabilities", partial(abilities.capabilities, acc))
    for capability in CAPABILITIES:
        yield Case(
            f"accelerator/capability/{capability}",
            partial(abilities.both_ways, acc, capability),
        )
