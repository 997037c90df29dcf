"""QKVGemmOp, MLPGemmOp, GELUGemmOp: a norm, products with weights, and what stands between."""

from __future__ import annotations

import torch
from torch import Tensor

from accel import ops
from accel.errors import OpArgumentError
from accel.layers.inference.base import WeightOp
from accel.layers.inference.config import InferenceConfig
from accel.layers.inference.elementwise import gated
from accel.layers.inference.names import NormType
from accel.layers.inference.norms import LayerNormOp


class QKVGemmOp(WeightOp):
    """The norm before attention and the projection to queries, keys and values."""

    uses = ("layer_norm", "rms_norm", "linear", "quantized_linear")

    def forward(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, gamma: Tensor | None,
        beta: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """``(norm @ weight + bias, norm)``: norm is input ``[..., H]`` under the config's norm."""
        norm = self.normed(input, gamma, beta)
        quantized = self.config.dtype is torch.int8 and self.config.enable_qkv_quantization
        return self.product(norm, weight, bias, quantized=quantized), norm


class MLPGemmOp(WeightOp):
    """The norm before the MLP and the MLP, whose activation is ``mlp_act_func_type``; a gated one
    has in the first half of ``weight_interm``'s output what its second half opens."""

    uses = (
        "layer_norm", "add_norm", "dropout_add", "bias_act", "linear", "quantized_linear",
    )  # fmt: skip

    def __init__(self, config: InferenceConfig | None = None) -> None:
        super().__init__(config)
        self.act = self.config.mlp_act_func_type.act
        self.gated = self.config.mlp_act_func_type.gated

    def forward(
        self, input: Tensor, residual: Tensor, weight_interm: Tensor, weight_out: Tensor,
        input_bias: Tensor | None = None, bias: Tensor | None = None, gamma: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """``(MLP(norm) without its last bias, residual_add)``, both ``[..., H]``.

        With a LayerNorm, norm is that of ``input + residual + input_bias``, or without
        ``mlp_after_attn`` of input alone, and is the second result. With an RMSNorm, norm is that
        of ``input + input_bias + residual``, and this sum, the new residual, is the second result.
        ``bias`` is added before the activation.
        """
        self._require_shapes(weight_interm, weight_out)
        if self.config.norm_type == NormType.RMSNorm:
            self.require_no_beta(beta)
            x = input if input_bias is None else ops.bias_act(input, input_bias)
            norm, total = ops.add_norm(x, residual, gamma, kind="rms", eps=self.config.epsilon)
            return self._mlp(norm, weight_interm, bias, weight_out), total
        if self.config.mlp_after_attn:
            norm = LayerNormOp.layer_norm_residual(
                input, input_bias, residual, gamma, beta, self.config.epsilon
            )
        else:
            norm = self.normed(input, gamma, beta)
        return self._mlp(norm, weight_interm, bias, weight_out), norm

    def _mlp(self, x: Tensor, weight: Tensor, bias: Tensor | None, weight_out: Tensor) -> Tensor:
        act = None if self.gated else self.act
        inner = self.product(x, weight, bias, name="weight_interm", act=act)
        inner = gated(inner, self.act) if self.gated else inner
        return self.product(inner, weight_out, name="weight_out")

    def _require_shapes(self, weight: Tensor, weight_out: Tensor) -> None:
        """The inner sizes agree, with the config too where it gives one."""
        for name, w in (("weight_interm", weight), ("weight_out", weight_out)):
            self.require_weight(name, w)
        rows, columns = (0, 1) if self.config.transposed_mode else (1, 0)
        found, inner = weight.shape[rows], weight_out.shape[columns]
        known = self.config.intermediate_size
        if found != inner * (2 if self.gated else 1) or (
            known > 0 and inner * self.config.mp_size != known
        ):
            share = f" = {known} / {self.config.mp_size}" if known > 0 else ""
            raise OpArgumentError(
                f"MLPGemmOp: with {self.config.mlp_act_func_type.name} weight_interm must give "
                f"{'2 * ' if self.gated else ''}I and weight_out take I{share}; found {found} and "
                f"{inner}"
            )


class GELUGemmOp(WeightOp):
    """``gelu(input @ weight + bias) @ weight_out``, with the tanh form of GELU."""

    uses = ("linear", "quantized_linear")

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor, weight_out: Tensor) -> Tensor:
        """``[..., H]`` of input ``[..., K]``, bias ``[I]`` and weights laid out as the config
        says."""
        inner = self.product(input, weight, bias, act="gelu_tanh")
        return self.product(inner, weight_out, name="weight_out")
