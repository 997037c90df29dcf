"""Checks the contracts share. Each raises OpArgumentError: asked, found, possible."""

from __future__ import annotations

import numbers
from collections.abc import Mapping

import torch
from torch import Tensor

from accel.contracts.activation import ACTIVATIONS
from accel.errors import OpArgumentError, close_matches

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# What each is computed in: fp32, or fp64 beside fp64.
WIDE = {dtype: torch.promote_types(dtype, torch.float32) for dtype in FLOATS}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe(tensor: Tensor) -> str:
    return f"{name_of(tensor.dtype)}{list(tensor.shape)} on {tensor.device}"


def require_floats(op: str, x: Tensor, others: Mapping[str, Tensor | None], key: str = "x") -> None:
    """``x``, named ``key``, is floating point; every other tensor has its dtype and device."""
    if x.dtype not in FLOATS:
        known = ", ".join(map(name_of, FLOATS))
        raise OpArgumentError(f"{op}: {key} must be one of {known}; found {describe(x)}")
    for name, tensor in others.items():
        if tensor is None:
            continue
        if tensor.dtype is not x.dtype:
            raise OpArgumentError(
                f"{op}: {name} must have {key}'s dtype; found {describe(tensor)} beside "
                f"{describe(x)}; cast one of them"
            )
        _require_device(op, name, tensor, key, x)


def require_wide(op: str, name: str, tensor: Tensor, x: Tensor, key: str = "x") -> None:
    """``tensor`` is on the device of ``x``, named ``key``, in the dtype that x is computed in."""
    if tensor.dtype is not WIDE[x.dtype]:
        raise OpArgumentError(
            f"{op}: {name} must have the dtype {name_of(WIDE[x.dtype])} beside {key}; found "
            f"{describe(tensor)} beside {describe(x)}; cast {name}"
        )
    _require_device(op, name, tensor, key, x)


def require_integers(
    op: str, name: str, tensor: Tensor, *, like: str, other: Tensor,
    dtypes: tuple[torch.dtype, ...] = (torch.int64,),
) -> None:  # fmt: skip
    """``tensor`` has one of the integer ``dtypes`` and the device of ``other``, named ``like``."""
    if tensor.dtype not in dtypes:
        known = " or ".join(map(name_of, dtypes))
        raise OpArgumentError(f"{op}: {name} must be {known}; found {describe(tensor)}")
    _require_device(op, name, tensor, like, other)


def _require_device(op: str, name: str, tensor: Tensor, like: str, other: Tensor) -> None:
    if tensor.device != other.device:
        raise OpArgumentError(
            f"{op}: {name} must be on {like}'s device; found {describe(tensor)} beside "
            f"{describe(other)}; move one of them"
        )


def require_rows(op: str, x: Tensor) -> None:
    if x.dim() < 1:
        raise OpArgumentError(f"{op}: x must have at least one dimension; found {describe(x)}")


def require_number(op: str, name: str, value: object) -> None:
    if not isinstance(value, (numbers.Real, torch.SymFloat)):
        raise TypeError(f"{op}: {name} must be a number, not {type(value).__name__}")


def require_eps(op: str, eps: float) -> None:
    require_number(op, "eps", eps)
    if not eps >= 0:
        raise OpArgumentError(f"{op}: eps must be at least 0; found {eps}")


def require_dropout(
    op: str, name: str, p: float, seed: Tensor | None, *, like: str, other: Tensor
) -> None:
    """``p``, named ``name``, is a probability, and what it drops is drawn from ``seed``, int64
    ``[]`` on the device of ``other``, named ``like``; None will do where p is 0."""
    require_number(op, name, p)
    if not 0 <= p <= 1:
        raise OpArgumentError(f"{op}: {name} must be between 0 and 1; found {p}")
    if seed is None:
        if p > 0:
            raise OpArgumentError(
                f"{op}: {name} = {p} needs a seed, an int64 tensor of shape []; found None"
            )
        return
    require_integers(op, "seed", seed, like=like, other=other)
    if seed.dim() != 0:
        raise OpArgumentError(f"{op}: seed must be of shape []; found {describe(seed)}")


def require_flag(op: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, not {type(value).__name__}")


def require_act(op: str, act: str | None, *, optional: bool = True) -> None:
    known = isinstance(act, str) and act in ACTIVATIONS
    if not known and not (optional and act is None):
        none = " (None for none)" if optional else ""
        raise OpArgumentError(
            f"{op}: unknown act {act!r}; {close_matches(str(act), ACTIVATIONS)}{none}"
        )


def require_out_dtype(op: str, out_dtype: torch.dtype | None) -> None:
    if out_dtype is not None and out_dtype not in FLOATS:
        raise OpArgumentError(f"{op}: out_dtype must be a floating point dtype, not {out_dtype}")


def require_weight(op: str, name: str, w: Tensor, x: Tensor) -> None:
    if w.dim() != 2:
        raise OpArgumentError(f"{op}: {name} must be [out, in]; found {describe(w)}")
    if x.dim() < 1:
        raise OpArgumentError(f"{op}: x must have at least one dimension; found {describe(x)}")
    if x.shape[-1] != w.shape[1]:
        raise OpArgumentError(
            f"{op}: x's last dimension must be {name}'s in = {w.shape[1]}; found {describe(x)} "
            f"with {name} {describe(w)}"
        )


def require_same_shape(op: str, name: str, w: Tensor, like: str, other: Tensor) -> None:
    if w.shape != other.shape:
        raise OpArgumentError(
            f"{op}: {name} must have {like}'s shape; found {describe(w)} beside {describe(other)}"
        )


def require_bias(op: str, name: str, b: Tensor | None, out: int) -> None:
    if b is not None and (b.dim() != 1 or b.shape[0] != out):
        raise OpArgumentError(f"{op}: {name} must be [{out}]; found {describe(b)}")


def refuse_nontensor(op: str, arguments: Mapping[str, object], optional: tuple[str, ...]) -> None:
    for name, value in arguments.items():
        if not isinstance(value, Tensor) and not (value is None and name in optional):
            raise TypeError(f"{op}: {name} must be a torch.Tensor, not {type(value).__name__}")
