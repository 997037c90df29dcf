"""Whether Triton compiles for the current GPU, and what it is called there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from accel import Refusal


def triton_refusal() -> Refusal | None:
    """Why Triton cannot compile for the current GPU; None if it can. Imports no Triton."""
    backend = "amd" if torch.version.hip else "nvidia"
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        have = "no Triton installed"
        return Refusal("triton", "Triton", have, "install the triton that torch asks for")
    if not (Path(found.origin).parent / "backends" / backend).is_dir():
        have = f"one without its {backend} backend in {Path(found.origin).parent}"
        return Refusal("triton", "Triton for this GPU", have, "install torch's own triton")
    if not torch.version.hip and torch.cuda.get_device_capability() < (8, 0):
        have = "{}.{}".format(*torch.cuda.get_device_capability())
        want = "a GPU of compute capability 8.0 or higher"
        return Refusal("triton", want, have, "use implementations without Triton")
    return None


def architecture() -> str:
    """The current GPU's: ``"sm_90"``, or on AMD ``"gfx942"``."""
    if torch.version.hip:
        return torch.cuda.get_device_properties().gcnArchName.partition(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability())
