"""LayerNormOp, RMSNormOp, PreRMSNormOp: norms, and those of a sum with the residual stream."""

from __future__ import annotations

from torch import Tensor

from accel import ops
from accel.layers.inference.base import BaseOp


class LayerNormOp(BaseOp):
    """``(x - mean) / sqrt(variance + epsilon) * gamma + beta`` over the last dimension."""

    uses = ("layer_norm", "add_norm", "dropout_add")

    def forward(
        self, vals: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
    ) -> Tensor:
        """vals ``[..., H]``, gamma and beta ``[H]``; vals' shape and dtype."""
        return ops.layer_norm(vals, gamma, beta, eps=epsilon)

    @classmethod
    def layer_norm_residual(
        cls, vals: Tensor, bias: Tensor | None, res: Tensor, gamma: Tensor | None,
        beta: Tensor | None, epsilon: float,
    ) -> Tensor:  # fmt: skip
        """The norm of ``vals + bias + res``."""
        return cls.layer_norm_residual_store_pre_ln_res(vals, bias, res, gamma, beta, epsilon)[0]

    @classmethod
    def layer_norm_residual_store_pre_ln_res(
        cls, vals: Tensor, bias: Tensor | None, res: Tensor, gamma: Tensor | None,
        beta: Tensor | None, epsilon: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(the norm of ``vals + bias + res``, that sum): the norm is of the sum as returned."""
        if bias is None:
            return ops.add_norm(vals, res, gamma, beta, kind="layer", eps=epsilon)
        total = ops.dropout_add(vals, res, bias)
        return ops.layer_norm(total, gamma, beta, eps=epsilon), total


class RMSNormOp(BaseOp):
    """``vals / sqrt(mean(vals²) + epsilon) * gamma`` over the last dimension."""

    uses = ("rms_norm",)

    def forward(self, vals: Tensor, gamma: Tensor | None, epsilon: float) -> Tensor:
        """vals ``[..., H]``, gamma ``[H]``; vals' shape and dtype."""
        return ops.rms_norm(vals, gamma, eps=epsilon)


class PreRMSNormOp(BaseOp):
    """The RMS norm of a sum with the residual stream."""

    uses = ("add_norm",)

    def forward(
        self, vals: Tensor, residual: Tensor, gamma: Tensor | None, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """(the norm of ``vals + residual``, that sum): the norm is of the sum as returned."""
        return ops.add_norm(vals, residual, gamma, kind="rms", eps=epsilon)
