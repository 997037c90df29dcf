"""What only shows where torch watches: wrong fakes, batching rules, backwards and casts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from accel.contracts import Contract
from accel_conformance.faults.planting import Formula, fault


@fault("opcheck", "torch/*/opcheck*", also="compiled", role="terms")
def fake_with_other_strides(right: Contract) -> Contract:
    """The fake's rows lie one beside the other; shape and dtype are right."""

    def fake(*args: Any) -> Tensor:
        found: Tensor = right.fake(*args)
        return found.new_empty(found.shape[::-1]).permute(*range(found.dim() - 1, -1, -1))

    return replace(right, fake=fake)


@fault("compiled", "torch/*/compiled", also="opcheck", role="backward")
def backward_looks_at_values(right: Formula) -> Formula:
    """It asks the gradient for its values, which a trace has none of; eagerly it is right."""

    def backward(grad: Tensor, needs: Any, *rest: Any) -> Any:
        return right(grad if bool(grad.any()) else grad * 0, needs, *rest)

    return backward


@fault("transforms", "torch/*/transforms", op="dropout_add", role="terms")
def batch_taken_for_rows(right: Contract) -> Contract:
    """A batch of inputs becomes more rows, of which other arguments speak as well."""
    return replace(right, rowwise=True)


@fault("autocast", "torch/*/autocast", op="rms_norm", role="terms")
def norm_stated_as_a_product(right: Contract) -> Contract:
    """Autocast is to lower it, by the contract; what runs has its input's dtype."""
    return replace(right, autocast="lower")
