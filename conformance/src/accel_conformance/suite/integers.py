"""Whole numbers: what is a sum of products is exact, in every order, so the tolerance is zero.

A sample's values are replaced by small whole numbers where they lie, so that shapes, layouts and
options stay. An element whose bound (see oracles/bounded.py) is zero, because all that it is made
of is whole and small enough to be held, must be the exact result rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from accel.contracts import Contract
from accel_conformance.case import Case, Evidence
from accel_conformance.expected import expected
from accel_conformance.subject import Subject
from accel_conformance.suite.numerics import labels
from accel_conformance.suite.per_sample import has_elements, per_sample
from accel_conformance.target import Args, Target

# The ops that only add and multiply, where their activation does.
SUMS = {
    "linear", "gated_linear", "lora_linear", "quantized_linear", "grouped_linear", "tiled_linear",
    "tiled_mlp", "embedding", "rotary", "bias_act", "dropout_add", "add_norm",
}  # fmt: skip
LINEAR = (None, "relu")
OPTIONS = {"scale": 2.0, "p": 0.5}  # for those that are given and are not whole
LARGEST = 4  # whose square times the longest sum is held in every dtype that is added in


def cases(subject: Subject) -> Iterator[Case]:
    return per_sample("integers", subject, check, required=False, over=_sums)


def check(target: Target, sample: str, args: Args, seen: Evidence) -> None:
    args = _whole(target.contract, args)
    if target.declines(seen, args):
        return
    results = target.call(args)
    seen.ran = target.bound(args)
    wanted = expected(target.contract, args)
    for which, result, one in zip(labels(results), results, wanted, strict=True):
        held = torch.from_numpy(one.error == 0).to(result.device)
        if held.any():
            right = torch.from_numpy(one.value).to(result.dtype).to(result.device)
            off = int((held & (result != right)).sum())
            seen.expect("whole", not off, f"{which}{off} of {int(held.sum())} elements are not")


def _sums(contract: Contract, args: Args) -> bool:
    named = dict(zip(contract.parameters, args))
    return contract.name in SUMS and named.get("act") in LINEAR and has_elements(contract, args)


def _whole(contract: Contract, args: Args) -> Args:
    named: Mapping[str, Any] = dict(zip(contract.parameters, args))
    for arg in args:
        if isinstance(arg, Tensor) and arg.is_floating_point():
            _round(arg)
    return tuple(
        OPTIONS[name] if name in OPTIONS and value % 1 else value for name, value in named.items()
    )


def _round(tensor: Tensor) -> None:
    """Everything in its storage becomes a whole number, of both signs and up to LARGEST."""
    everything = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    everything.set_(tensor.untyped_storage())
    if everything.numel():
        size = everything.double().square().mean().sqrt()
        everything.copy_((everything.double() * (2 / size)).round().clamp(-LARGEST, LARGEST))
