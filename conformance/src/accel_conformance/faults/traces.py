"""What torch takes from an op: its fake, batching rule and casts, a gradient of a kernel's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from accel import op_builder
from accel.contracts import LINEAR, Contract
from accel_conformance.faults.planting import Formula, Kernel, faults_of

fault = faults_of("contract")


@fault("opcheck", "torch/*/opcheck*", also="compiled", role="terms")
def fake_with_other_strides(right: Contract) -> Contract:
    """The fake's rows lie one beside the other; shape and dtype are right."""

    def fake(*args: Any) -> Tensor:
        found: Tensor = right.fake(*args)
        return found.new_empty(found.shape[::-1]).permute(*range(found.dim() - 1, -1, -1))

    return replace(right, fake=fake)


@fault("compiled", "torch/*/compiled", also="opcheck", role="backward")
def backward_looks_at_values(right: Formula) -> Formula:
    """The gradient is asked for its values, which a trace has none of; eagerly it is right."""

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


@fault("gradient", "gradients/*")
def own_gradient_disagrees(kernel: Kernel) -> op_builder.Kernel:
    """A gradient that the kernel brings is of the result, not of the gradient that reaches it."""

    def backward(grad: Tensor, needs: Any, *args: Any, kept: Any) -> Any:
        return LINEAR.backward(kept[0], needs, *args)

    return op_builder.Kernel(kernel, lambda *args: (result := kernel(*args), (result,), backward))
