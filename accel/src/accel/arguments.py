"""Reading what is typed on a command line; ValueError says what it could have been."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

SHORT = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64,
}  # fmt: skip


def names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError as error:
        raise ValueError(f"{text!r} is no torch device: {error}") from None


def dtype(text: str) -> torch.dtype:
    found = SHORT.get(text, getattr(torch, text.removeprefix("torch."), None))
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{text!r} is no torch dtype; for example float32 or fp32, bf16, fp16")
    return found


def shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split("x"))
    except ValueError:
        raise ValueError(f'cannot read the shape {text!r}; write sizes as "8x128"') from None


def option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f'cannot read the option {text!r}; write "act=silu"')
    if name.endswith("dtype"):
        return name, dtype(value)
    if value in ("true", "false"):
        return name, value == "true"
    for number in (int, float):
        with suppress(ValueError):
            return name, number(value)
    return name, value
