"""What the device computes in."""

from __future__ import annotations

import torch

from accel.accelerator import Accelerator
from accel.contracts.inputs import Draw
from accel_conformance.case import Evidence
from accel_conformance.measure import exact


def dtypes_agree(acc: Accelerator, seen: Evidence) -> None:
    """The list, and the questions about single dtypes."""
    found = acc.supported_dtypes()
    listed = isinstance(found, list) and all(isinstance(d, torch.dtype) for d in found)
    if not seen.expect("types", listed, f"supported_dtypes() is {found!r:.120}"):
        return
    seen.expect("types", found[:1] == [torch.float32], f"supported_dtypes() starts {found[:1]}")
    seen.expect("types", len(set(found)) == len(found), f"one is listed twice: {found}")
    questions = {
        torch.bfloat16: ("is_bf16_supported()", acc.is_bf16_supported()),
        torch.float16: ("is_fp16_supported()", acc.is_fp16_supported()),
        torch.float64: ("supports('fp64')", acc.supports("fp64")),
    }
    for dtype, (question, answer) in questions.items():
        seen.expect("types", isinstance(answer, bool), f"{question} is {answer!r}, not a bool")
        says = f"{question} is {answer}, supported_dtypes() is {found}"
        seen.expect("types", answer == (dtype in found), says)


def computes(acc: Accelerator, dtype: torch.dtype, seen: Evidence) -> None:
    """A matrix product whose result is exact in every dtype: small integers, sums below 128."""
    a, b = (
        Draw("computes").plain(name, (31, 31), torch.float32, acc.device()).round().clamp(-1, 1)
        for name in ("a", "b")
    )
    found = a.to(dtype) @ b.to(dtype)
    seen.expect("computes", found.dtype is dtype, f"a product in {dtype} is in {found.dtype}")
    wanted = exact(a) @ exact(b)  # type: ignore[operator]
    wrong = int((exact(found) != wanted).sum())
    seen.expect("computes", not wrong, f"{wrong} of {wanted.size} elements are wrong")
