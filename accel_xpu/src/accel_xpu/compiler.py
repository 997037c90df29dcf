"""Whether Triton compiles for the current GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from accel import Refusal


def triton_refusal() -> Refusal | None:
    """Why Triton cannot compile for an Intel GPU; None if it can. Imports no Triton."""
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        have = "no Triton installed"
        return Refusal("triton", "Triton", have, "install the triton-xpu that torch asks for")
    if not (Path(found.origin).parent / "backends/intel").is_dir():
        # Both wheels install a package of the same name, and the later one wins.
        have = f"one without its intel backend in {Path(found.origin).parent}"
        remedy = "uninstall triton and install triton-xpu again"
        return Refusal("triton", "Triton for this GPU", have, remedy)
    return None
