"""``python docs/contracts.py`` writes contracts.md from the contracts; a test holds it true."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from accel import ops
from accel.contracts import CONTRACTS, Contract
from accel.op_builder import FAMILIES

PAGE = Path(__file__).with_name("contracts.md")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

HEAD = """# Contracts

What each op promises, on every device and by every implementation. Made from the contracts by
`python docs/contracts.py`.

An error is measured against float64, in units of the result's RMS: *rms* bounds the root mean
square of the error, *peak* its largest element. *samples* is how many inputs conformance and the
tests take per dtype, *bad inputs* how many must be refused. The reference of an op marked *rows
alone* gives each row the bits it has without its neighbours; an implementation claims that for
itself.
"""


def page() -> str:
    """The page's text."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield HEAD
    for family, purpose in FAMILIES.items():
        yield f"## {family}: {purpose}\n"
        for contract in (c for c in CONTRACTS.values() if c.family == family):
            yield from _section(contract)


def _section(contract: Contract) -> Iterator[str]:
    doc = inspect.getdoc(getattr(ops, contract.name)) or ""
    yield f"### {contract.name}\n"
    yield doc.replace("``", "`").replace(":func:", "") + "\n"
    yield f"    {contract.name}{contract.schema}\n"
    yield "| | " + " | ".join(_name(d) for d in DTYPES) + " |"
    yield "|---" * (len(DTYPES) + 1) + "|"
    budgets = [contract.tolerance[d] for d in DTYPES]
    yield "| rms | " + " | ".join(f"{b.rms:.2g}" for b in budgets) + " |"
    yield "| peak | " + " | ".join(f"{b.peak:.2g}" for b in budgets) + " |\n"
    facts = [
        f"{len(list(contract.samples()))} samples",
        f"{len(list(contract.bad_inputs()))} bad inputs",
        *(["rows alone"] if contract.reference_invariant else []),
        *([f"options to refuse by: {', '.join(contract.options)}"] if contract.options else []),
    ]
    yield " · ".join(facts) + "\n"


def _name(dtype: torch.dtype) -> str:
    return re.sub("^torch.", "", str(dtype))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
