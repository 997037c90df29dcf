"""BaseOp and WeightOp: what the inference ops share, and nothing beyond one object's life."""

from __future__ import annotations

import torch
from torch import Tensor

from accel import ops
from accel.contracts import checks
from accel.errors import ConfigError, OpArgumentError
from accel.layers.base import OpLayer
from accel.layers.inference.config import InferenceConfig
from accel.layers.inference.names import NormType
from accel.ops.resolution import Decision


class BaseOp(OpLayer):
    """An inference op: settings and a ``forward`` over ops.

    Ops are resolved through the registry for the tensors of each call, so an instance serves any
    device. Results are tensors of their own; no argument is written to; nothing is shared between
    instances.
    """

    def __init__(self, config: InferenceConfig | None = None) -> None:
        super().__init__()
        if config is not None and not isinstance(config, InferenceConfig):
            name, found = type(self).__name__, type(config).__name__
            raise TypeError(f"{name}: config must be an InferenceConfig, not {found}")
        self.config = InferenceConfig() if config is None else config

    def explain(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> dict[str, Decision]:
        """:meth:`OpLayer.explain`; ``dtype`` is by default the config's, for int8 fp32."""
        if dtype is None and self.config.dtype.is_floating_point:
            dtype = self.config.dtype
        return super().explain(device=device, dtype=dtype)

    def extra_repr(self) -> str:
        return f"dtype={checks.name_of(self.config.dtype)}"

    def refuse(self, name: str, value: object, why: str) -> None:
        """OpArgumentError for an argument that asks for what is not here."""
        raise OpArgumentError(f"{type(self).__name__}: {name}={value!r} is not served: {why}")


class WeightOp(BaseOp):
    """An op with weights, ``[out, in]`` in ``transposed_mode`` and else ``[in, out]``."""

    @property
    def _is_quantized(self) -> bool:
        return self.config.dtype is torch.int8

    def product(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, name: str = "weight",
        act: str | None = None, quantized: bool | None = None, transposed: bool | None = None,
    ) -> Tensor:  # fmt: skip
        """``act(x @ weight + bias)`` of the weight that ``forward`` calls ``name``.

        In the config's dtype, which the weight must have; ``quantized`` (default: whether that is
        int8) weights are int8 beside ``quantization_scales[name]``. ``transposed`` is by default
        the config's ``transposed_mode``.
        """
        quantized = self._is_quantized if quantized is None else quantized
        transposed = self.config.transposed_mode if transposed is None else transposed
        self.require_weight(name, weight, quantized, transposed)
        w = weight if transposed else weight.t()
        if not quantized:
            return ops.linear(x, w, bias, act=act)
        scales = self._scales(name).to(checks.WIDE.get(x.dtype, torch.float32))
        return ops.quantized_linear(x, w, scales, bias, act=act)

    def normed(self, x: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        """``x`` under the config's norm, of which an RMS norm has no ``beta``."""
        eps = self.config.epsilon
        if self.config.norm_type == NormType.LayerNorm:
            return ops.layer_norm(x, gamma, beta, eps=eps)
        self.require_no_beta(beta)
        return ops.rms_norm(x, gamma, eps=eps)

    def require_no_beta(self, beta: Tensor | None) -> None:
        if beta is not None:
            self.refuse("beta", checks.describe(beta), "an RMS norm has no such term; pass None")

    def require_weight(
        self, name: str, weight: Tensor, quantized: bool | None = None,
        transposed: bool | None = None,
    ) -> None:  # fmt: skip
        """A matrix in the config's dtype; the rest as in :meth:`product`."""
        checks.refuse_nontensor(type(self).__name__, {name: weight}, optional=())
        quantized = self._is_quantized if quantized is None else quantized
        transposed = self.config.transposed_mode if transposed is None else transposed
        shape, wanted = "[out, in]" if transposed else "[in, out]", self.config.dtype
        if wanted is torch.int8 and not quantized:
            fits, possible = weight.is_floating_point(), "floating point"
        else:
            fits, possible = weight.dtype is wanted, f"{checks.name_of(wanted)}, the config's dtype"
        if not fits or weight.dim() != 2:
            raise OpArgumentError(
                f"{type(self).__name__}: {name} must be {shape} in {possible}; found "
                f"{checks.describe(weight)}; cast it, or make the config with another dtype"
            )

    def _scales(self, name: str) -> Tensor:
        given = self.config.quantization_scales
        if name not in given:
            raise ConfigError(
                f"{type(self).__name__}: the int8 {name} needs quantization_scales[{name!r}]; the "
                f"config has those of {', '.join(map(repr, given)) or 'no weight'}"
            )
        return given[name]
