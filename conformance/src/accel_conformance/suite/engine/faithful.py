"""The engine computes the model it was given: measured against transformers' own in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from accel_conformance.case import Evidence
from accel_conformance.measure import exact
from accel_conformance.suite.engine.models import Trial, training_logits

# Our error may be so many of transformers' own: both are a few roundings deep, and which of two
# correct orders errs less is chance.
OF_THEIRS = 2.0


class _Widened(TorchFunctionMode):
    """Runs transformers' code in float64 throughout: where it asks for fp32, it gets fp64."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*map(_wide, args), **{k: _wide(v) for k, v in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def faithful(trial: Trial, seen: Evidence) -> None:
    """The logits of real tokens: as near to float64 as transformers' own in the same dtype."""
    real = trial.mask == 1
    ours = training_logits(trial.engine(), trial.ids, trial.mask)[real]
    host = copy.deepcopy(trial.model).cpu()
    host.set_attn_implementation("eager")
    theirs = _logits(host, trial)
    with _Widened():
        wanted = _logits(host.double(), trial)
    budget = OF_THEIRS * _rms(theirs - wanted) + torch.finfo(theirs.dtype).eps / 2 * _rms(wanted)
    error = _rms(torch.from_numpy(exact(ours)) - wanted)
    seen.used(error / budget, error / budget)
    says = (
        f"the logits' error is {error:.3g}, {error / budget:.3g} of what transformers' own allows"
    )
    seen.expect("faithful", error <= budget, says)


def _logits(model: Any, trial: Trial) -> Tensor:
    ids, mask = trial.ids.cpu(), trial.mask.cpu()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    return found[mask == 1]


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


CHECKS = {"faithful": faithful}
