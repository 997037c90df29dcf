"""Faults in Triton kernels: a copy of the package with one line of its source wrong."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from accel.triton_kernels.builders import PACKAGE


@dataclass(frozen=True)
class Fault:
    """``right`` stands once in ``module`` and is replaced by ``wrong``; ``case``, as
    ``"area/op/sample"``, is one of conformance's that must see it."""

    name: str
    case: str
    module: str
    right: str
    wrong: str


@contextmanager
def planted(fault, folder):
    """The name of a package of kernels with the fault, or right where it is None, in the body."""
    name = "planted_kernels" if fault is None else f"planted_{fault.name}"
    place = folder / name
    place.mkdir()
    for file in Path(sys.modules[PACKAGE].__file__).parent.glob("*.py"):
        text = file.read_text()
        if fault is not None and file.stem == fault.module:
            assert text.count(fault.right) == 1, f"{fault.name}: {text.count(fault.right)} places"
            text = text.replace(fault.right, fault.wrong)
        (place / file.name).write_text(text.replace(PACKAGE, name))
    sys.path.insert(0, str(folder))
    try:
        yield name
    finally:
        sys.path.remove(str(folder))
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            del sys.modules[module]
