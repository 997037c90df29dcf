"""What there is on this machine, as data: what ``accel info`` prints and bug reports need.

Three facts about an implementation are kept apart: it can be imported, it can be built, and it
has just computed a right answer on this device.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch
from torch import Tensor

import accel
from accel import environment, plugins, selection
from accel import registry as _registry
from accel.contracts import CONTRACTS, Contract
from accel.errors import AccelError
from accel.native import cache, toolchain
from accel.op_builder import Request
from accel.ops import catalog
from accel.ops.catalog import Entry
from accel.ops.policy import use
from accel.refusal import Refusal
from accel.torch_impls import ANY_DEVICE

PASSED, FAILED, BUILDABLE, IMPORTABLE, REFUSED = (
    "self-test passed", "self-test failed", "buildable", "importable", "refused",
)  # fmt: skip


def diagnose(*, build: bool = False) -> dict[str, Any]:
    """Everything, ready for JSON. ``build`` compiles what a self-test needs."""
    chosen, reason, device = _choice()
    return {
        "versions": _versions(),
        "accelerator": {"chosen": chosen, "reason": reason},
        "backends": [_plugin(c, chosen) for c in _registry.registry().candidates],
        "native": _native(),
        "variables": _variables(),
        "ops": [] if device is None else _matrix(device, build),
    }


def _versions() -> dict[str, str]:
    return {
        "accel": accel.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def _choice() -> tuple[str | None, str, torch.device | None]:
    try:
        choice = selection.choose()
    except AccelError as error:
        return None, f"{type(error).__name__}: {error}", None
    return choice.accelerator.name, choice.reason, choice.accelerator.device()


def _plugin(candidate: plugins.Candidate, chosen: str | None) -> dict[str, Any]:
    refusals = candidate.unavailable()
    backend = candidate.backend
    return {
        "name": candidate.name,
        "kind": "backend" if backend else "kernel pack" if candidate.builders else "broken",
        "distribution": candidate.distribution,
        "vendor": backend.vendor if backend else None,
        "rank": backend.rank if backend else None,
        "state": "chosen" if backend and candidate.name == chosen and not refusals
        else "refused" if refusals else "available",
        "caveat": backend.caveat if backend else "",
        "broken": bool(candidate.refusals),
        "refusals": [refusal.to_dict() for refusal in refusals],
        "traceback": candidate.traceback,
    }  # fmt: skip


def _native() -> dict[str, Any]:
    folder = cache.folder()
    files = [file for file in folder.rglob("*") if file.is_file()] if folder.is_dir() else []
    return {
        "compiler": toolchain.compiler(),
        "ninja": toolchain.ninja(),
        "cache": str(folder),
        "cache_bytes": sum(file.stat().st_size for file in files),
    }


def _variables() -> dict[str, str]:
    return {name: value for name in environment.KNOWN if (value := environment.read(name))}


def _matrix(device: torch.device, build: bool) -> list[dict[str, Any]]:
    """One row per op and implementation that could serve the device."""
    rows = []
    for entry in catalog.entries():
        refusals = list(entry.plugin_refusals)
        if entry.builder.device_type not in (ANY_DEVICE, device.type):
            continue
        state, detail = (REFUSED, refusals) if refusals else _state(entry, device, build)
        rows.append(
            {
                "op": entry.impl.op,
                "implementation": entry.impl.id,
                "state": state,
                "dtypes": sorted(str(d).removeprefix("torch.") for d in entry.impl.dtypes),
                "priority": entry.impl.priority,
                "shape_invariant": entry.impl.shape_invariant,
                "reasons": [str(item) for item in detail],
            }
        )
    return rows


def _state(
    entry: Entry, device: torch.device, build: bool
) -> tuple[str, list[Refusal] | list[str]]:
    impl, builder = entry.impl, entry.builder
    contract = CONTRACTS[impl.op]
    dtype = torch.float32 if torch.float32 in impl.dtypes else next(iter(impl.dtypes))
    options = {name: contract.parameters[name].default for name in contract.options}
    options |= dict.fromkeys(contract.presence, False) | dict.fromkeys(contract.sizes)
    try:
        refusals = builder.reasons(impl, Request(impl.op, device, dtype, options=options))
        if refusals:
            return REFUSED, refusals
        if builder.needs_build() and not build:
            return BUILDABLE, []
        builder.load(impl)
    except Exception as error:
        return FAILED, [f"{type(error).__name__}: {error}"]
    return self_test(contract, impl.id, device, dtype)


def self_test(
    contract: Contract, impl: str, device: torch.device, dtype: torch.dtype
) -> tuple[str, list[str]]:
    """Run the contract's first sample on the device and hold it against float64."""
    sample = next(iter(contract.samples()))
    args = sample.make(dtype, device)
    count = contract.tensor_count
    wide = [a.double() if a is not None and a.is_floating_point() else a for a in args[:count]]
    try:
        with use(f"{contract.name}={impl}", exact=False, fallback="allow"):
            call = getattr(accel.ops, contract.name)
            options = dict(zip(list(contract.parameters)[count:], args[count:]))
            got = call(*args[:count], **options)
    except Exception as error:
        return FAILED, [f"{type(error).__name__}: {error}"]
    want = contract.reference(*wide, *args[count:])
    if contract.result_count == 1:
        got, want = (got,), (want,)
    error_rms = max(_error(one.double(), other) for one, other in zip(got, want))
    allowed = contract.tolerance[dtype].rms
    if error_rms <= allowed:
        return PASSED, []
    return FAILED, [f"error {error_rms:.2g} of the result's RMS, allowed {allowed:.2g}"]


def _error(got: Tensor, want: Tensor) -> float:
    """RMS of the error in units of the result's."""
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt())


def is_healthy(diagnosis: dict[str, Any]) -> bool:
    """An accelerator was chosen, no plugin is broken and no self-test failed."""
    return (
        diagnosis["accelerator"]["chosen"] is not None
        and not any(backend["broken"] for backend in diagnosis["backends"])
        and not any(row["state"] == FAILED for row in diagnosis["ops"])
    )
