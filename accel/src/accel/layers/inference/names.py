"""Names in DeepSpeed's settings, of norms, activations and dtypes, and how text is read as them."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch

from accel.contracts.checks import FLOATS, name_of
from accel.errors import ConfigError, close_matches


class NormType(IntEnum):
    """DeepSpeed's names and values."""

    UNKNOWN = 0
    LayerNorm = 1
    GroupNorm = 2
    RMSNorm = 3


class ActivationFuncType(IntEnum):
    """DeepSpeed's names and values. GELU is its tanh form, GATED_GELU has the error function."""

    UNKNOWN = 0
    GELU = 1
    ReLU = 2
    GATED_GELU = 3
    GATED_SILU = 4

    @property
    def act(self) -> str:
        """The activation's name among ops; ConfigError for UNKNOWN."""
        names = {1: "gelu_tanh", 2: "relu", 3: "gelu", 4: "silu"}
        if self not in names:
            possible = ", ".join(member.name for member in type(self) if member in names)
            raise ConfigError(f"{self!r} is no activation; possible are {possible}")
        return names[self]

    @property
    def gated(self) -> bool:
        return self in (ActivationFuncType.GATED_GELU, ActivationFuncType.GATED_SILU)


DTYPES = {**{name_of(dtype): dtype for dtype in FLOATS}, "int8": torch.int8}
_SHORT = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32",
          "float": "float32", "fp64": "float64", "double": "float64"}  # fmt: skip


def _names(kind: type[IntEnum]) -> str:
    return ", ".join(member.name for member in kind)


def _dtype(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    name = value.removeprefix("torch.")
    known = {**DTYPES, **{short: DTYPES[name] for short, name in _SHORT.items()}}
    if name not in known:
        raise ConfigError(f"unknown dtype {value!r}; {close_matches(name, known)}")
    return known[name]


def _enum(kind: type[IntEnum]) -> Callable[[Any], IntEnum]:
    def read(value: Any) -> IntEnum:
        if isinstance(value, str) and value in kind.__members__:
            return kind[value]
        if not isinstance(value, bool) and value in list(kind):
            return kind(value)
        raise ConfigError(f"unknown {kind.__name__} {value!r}; known: {_names(kind)}")

    return read


# name of a setting -> its value from what a dict or a JSON file has
READ: dict[str, Callable[[Any], Any]] = {
    "dtype": _dtype,
    "norm_type": _enum(NormType),
    "mlp_act_func_type": _enum(ActivationFuncType),
}
