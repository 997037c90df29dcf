"""Biases, activations and sums: each computed in fp32 (fp64 of fp64) and rounded once."""

from __future__ import annotations

from torch import Tensor

from accel import ops
from accel.contracts import checks
from accel.contracts.activation import activate
from accel.errors import OpArgumentError
from accel.layers.inference.base import BaseOp
from accel.layers.inference.names import ActivationFuncType, NormType


class BiasAddOp(BaseOp):
    """``activation + bias``."""

    uses = ("bias_act",)

    def forward(self, activation: Tensor, bias: Tensor) -> Tensor:
        """activation ``[..., H]``, bias ``[H]``."""
        return ops.bias_act(activation, bias)


class BiasGeluOp(BaseOp):
    """``gelu(activation + bias)``, in GELU's tanh form."""

    uses = ("bias_act",)

    def forward(self, activation: Tensor, bias: Tensor) -> Tensor:
        """activation ``[..., H]``, bias ``[H]``."""
        return ops.bias_act(activation, bias, act="gelu_tanh")


class BiasReluOp(BaseOp):
    """``relu(activation + bias)``."""

    uses = ("bias_act",)

    def forward(self, activation: Tensor, bias: Tensor) -> Tensor:
        """activation ``[..., H]``, bias ``[H]``."""
        return ops.bias_act(activation, bias, act="relu")


class BiasResidualOp(BaseOp):
    """``output + residual + bias``."""

    uses = ("dropout_add",)

    def forward(self, output: Tensor, residual: Tensor, bias: Tensor) -> Tensor:
        """output and residual ``[..., H]``, bias ``[H]``."""
        return ops.dropout_add(output, residual, bias)


class GatedActivationOp(BaseOp):
    """``h * act(g)``, where h and g are the halves of ``activation + bias``."""

    def forward(
        self, activation: Tensor, bias: Tensor | None, activation_func_type: ActivationFuncType
    ) -> Tensor:
        """``[..., I]`` of activation ``[..., 2I]`` and bias ``[2I]``. The type is GATED_GELU, by
        the error function, or GATED_SILU."""
        checks.refuse_nontensor("GatedActivationOp", {"activation": activation}, optional=())
        kind = activation_func_type
        if kind not in (ActivationFuncType.GATED_GELU, ActivationFuncType.GATED_SILU):
            self.refuse("activation_func_type", kind, "possible are GATED_GELU, GATED_SILU")
        kind = ActivationFuncType(kind)
        _require_vector("GatedActivationOp", "bias", bias, activation)
        return gated(activation, kind.act, bias)


def gated(x: Tensor, act: str, bias: Tensor | None = None) -> Tensor:
    """``h * act(g)`` of the halves of ``x + bias``, ``[..., 2I]``."""
    if x.dim() < 1 or x.shape[-1] % 2:
        raise OpArgumentError(f"a gated activation needs two halves; found {checks.describe(x)}")
    both = _wide(x) if bias is None else _wide(x) + _wide(bias)
    h, g = both.chunk(2, -1)
    return (h * activate(g, act)).to(x.dtype)


class VectorAddOp(BaseOp):
    """``gamma * a + b``."""

    def forward(self, a: Tensor, b: Tensor, gamma: float) -> Tensor:
        """a and b of one shape and dtype; gamma a number."""
        _require_like("VectorAddOp", "b", b, a)
        checks.require_number("VectorAddOp", "gamma", gamma)
        return (gamma * _wide(a) + _wide(b)).to(a.dtype)


class ResidualAddOp(BaseOp):
    """The residual stream after a layer's MLP."""

    def forward(
        self, hidden_state: Tensor, residual: Tensor, add_bias: bool,
        attention_output: Tensor | None = None, residual_add: Tensor | None = None,
        attention_bias: Tensor | None = None, final_bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """``[..., H]``: hidden_state, the MLP's result, and what the config makes of the rest.

        ================================================ =======================================
        no ``final_bias``                                ``residual / mp_size``
        ``mlp_after_attn``, ``pre_layer_norm``           ``(residual + attention_output +
                                                         attention_bias + final_bias) / mp_size``
        ``mlp_after_attn``, without ``pre_layer_norm``   ``residual + final_bias``
        without ``mlp_after_attn``                       ``attention_output + (residual +
                                                         attention_bias + final_bias) / mp_size``
        ================================================ =======================================

        ``residual_add``, the second result of MLPGemmOp, takes the place of residual where it is
        the new residual stream: without ``pre_layer_norm``, and with an RMSNorm. ``add_bias`` is
        about the last form alone, whose attention_bias it lets in; so it is in DeepSpeed.
        """
        x = residual
        rms = self.config.norm_type == NormType.RMSNorm
        if residual_add is not None and (rms or not self.config.pre_layer_norm):
            x = residual_add
        for name, like in (("residual", x), ("attention_output", attention_output)):
            _require_like("ResidualAddOp", name, like, hidden_state)
        for name, b in (("attention_bias", attention_bias), ("final_bias", final_bias)):
            _require_vector("ResidualAddOp", name, b, hidden_state)
        hidden, share = _wide(hidden_state), 1 / self.config.mp_size
        if final_bias is None:
            total = hidden + _wide(x) * share
        elif not self.config.mlp_after_attn:
            bias = attention_bias if add_bias else None
            total = hidden + _sum(attention_output) + _sum(x, bias, final_bias) * share
        elif self.config.pre_layer_norm:
            total = hidden + _sum(x, attention_output, attention_bias, final_bias) * share
        else:
            total = hidden + _sum(x, final_bias)
        return total.to(hidden_state.dtype)


class MoEResMatmulOp(BaseOp):
    """``residual * c1 + output * c2`` of a residual MoE (Rajbhandari et al. 2022)."""

    def forward(self, residual: Tensor, coef: Tensor, output: Tensor) -> Tensor:
        """residual and output ``[..., H]``; coef's halves are c1 and c2: ``[..., 2]``, a pair for
        each token, or ``[..., 2H]``, a pair for each element. It may broadcast."""
        _require_like("MoEResMatmulOp", "output", output, residual)
        checks.require_floats("MoEResMatmulOp", residual, {"coef": coef}, key="residual")
        rows, size = residual.shape[:-1], residual.shape[-1]
        if coef.dim() < 1 or coef.shape[-1] not in (2, 2 * size) or coef.dim() > residual.dim() or (
            any(c not in (1, r) for c, r in zip(coef.shape[-2::-1], rows[::-1]))
        ):  # fmt: skip
            raise OpArgumentError(
                f"MoEResMatmulOp: coef must be {[*rows, 2]} or {[*rows, 2 * size]}, or "
                f"broadcast to one of them; found {checks.describe(coef)}"
            )
        c1, c2 = _wide(coef).chunk(2, -1)
        return (_wide(residual) * c1 + _wide(output) * c2).to(residual.dtype)


class EinsumSecSmEcmOp(BaseOp):
    """``einsum("sec,sm->ecm", Q, W)``: the tokens that each expert takes, from where they lie."""

    uses = ("linear",)

    def forward(self, Q: Tensor, W: Tensor) -> Tensor:
        """``[E, C, M]`` of Q ``[S, E, C]`` and W ``[S, M]``."""
        if Q.dim() != 3 or W.dim() != 2 or Q.shape[0] != W.shape[0]:
            raise OpArgumentError(
                f"EinsumSecSmEcmOp: Q must be [S, E, C] and W [S, M]; found {checks.describe(Q)} "
                f"and {checks.describe(W)}"
            )
        return ops.linear(Q.permute(1, 2, 0), W.t())


def _wide(t: Tensor) -> Tensor:
    return t.to(checks.WIDE[t.dtype])


def _sum(*terms: Tensor | None) -> Tensor | float:
    """Of those that are there."""
    return sum((_wide(t) for t in terms if t is not None), start=0.0)


def _require_like(op: str, name: str, t: Tensor | None, like: Tensor) -> None:
    """``t``, if there is one, has the shape, the dtype and the device of ``like``."""
    checks.require_floats(op, like, {name: t}, key="the first argument")
    if t is not None:
        checks.require_same_shape(op, name, t, "the first argument", like)


def _require_vector(op: str, name: str, b: Tensor | None, x: Tensor) -> None:
    """``b``, if there is one, fits the last dimension of ``x``."""
    checks.require_floats(op, x, {name: b}, key="the first argument")
    checks.require_bias(op, name, b, x.shape[-1])
