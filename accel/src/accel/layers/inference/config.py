"""InferenceConfig: DeepSpeed's settings of the inference ops, checked, and ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from accel.errors import ConfigError
from accel.layers.inference.names import DTYPES, READ, ActivationFuncType, NormType
from accel.settings import Fixed, read_json, require_known

# Settings of what has no part here: name -> (the one value, why no other).
_FIXED = {
    "stochastic_mode": (False, "inference has no gradient sums to reorder"),
    "return_tuple": (True, "it is about a layer's forward; an op returns what it computes"),
    "return_single_tuple": (False, "it is about a layer's forward; an op returns what it computes"),
    "training_mp_size": (1, "weights are taken as they come; merge a checkpoint's parts before"),
    "bigscience_bloom": (False, "give alibi to SoftmaxContextOp, which takes it for any model"),
    "set_empty_params": (False, "ops hold no parameters"),
}


@dataclass(unsafe_hash=True)
class InferenceConfig(Fixed):
    """Settings of the inference ops, under DeepSpeed's names, in its order, with its defaults
    (``DeepSpeedInferenceConfig``). Bad ones raise ConfigError; -1 means "not given".

    ``hidden_size``, ``heads``  H and its heads, which divide it; of the whole model, as are
    ``num_kv``                  heads of keys and values; not given: ``heads``
    ``intermediate_size``       of the MLP; not given: four times ``hidden_size``
    ``num_hidden_layers``       layers; ``layer_id`` is below it
    ``layer_norm_eps``          inside the root of QKVGemmOp's and MLPGemmOp's norms; also
                                ``epsilon``
    ``local_rank``              index of the device that a workspace lies on; not given: the current
    ``mp_size``                 ranks that share the model; what all of them add is divided by it
    ``dtype``                   of activations and weights; int8: of weights, with their
                                ``quantization_scales``, beside activations of any dtype
    ``pre_layer_norm``          norms come before attention and MLP; else after the residual sums
    ``norm_type``               LayerNorm or RMSNorm
    ``scale_attention``, ``use_mup``, ``scale_attn_by_inverse_layer_idx``  see :attr:`norm_factor`
    ``triangular_masking``      no position sees a later one
    ``local_attention``         a position sees the last ``window_size``, itself among them
    ``rotary_dim``              elements of a head that turn by their position; not given: none;
                                in pairs ``(i, i + rotary_dim/2)`` if ``rotate_half``, ``(2i,
                                2i + 1)`` if ``rotate_every_two``; by powers of ``rope_theta``
    ``mlp_after_attn``          MLP reads what attention wrote; else both read the layer's input
    ``mlp_act_func_type``       of the MLP
    ``max_out_tokens``          a workspace's tokens for each sequence, its prompt among them
    ``min_out_tokens``          of which so many must remain for the answer
    ``enable_qkv_quantization`` with int8: QKVGemmOp's weight is int8 too, else floating point
    ``transposed_mode``         weights are ``[out, in]``; else ``[in, out]``
    ``use_triton``              LinearOp warns where no Triton kernel serves it
    ``triton_autotune``         the LinearOp of layer 0 has its kernel tuned, whatever it is made in
    ``invert_mask``             in masks that are not floating point 1 means "seen", else "hidden"

    ``stochastic_mode``, ``return_tuple``, ``return_single_tuple``, ``training_mp_size``,
    ``bigscience_bloom`` and ``set_empty_params`` are refused unless they have their defaults: what
    they speak of is not here.

    Ours:

    ``layer_id``             which layer the ops belong to
    ``quantization_scales``  per int8 weight, under the name it has in its op's ``forward``, the
                             scales ``[out, groups]`` that
                             :func:`accel.contracts.quantized_linear.quantize` gave of ``[out, in]``
    """

    hidden_size: int = -1
    intermediate_size: int = -1
    heads: int = -1
    num_hidden_layers: int = -1
    layer_norm_eps: float = 1e-12
    local_rank: int = -1
    mp_size: int = 1
    dtype: torch.dtype = torch.float16
    pre_layer_norm: bool = True
    norm_type: NormType = NormType.LayerNorm
    stochastic_mode: bool = False
    scale_attention: bool = True
    triangular_masking: bool = True
    local_attention: bool = False
    window_size: int = 256
    rotary_dim: int = -1
    rotate_half: bool = False
    rotate_every_two: bool = True
    return_tuple: bool = True
    mlp_after_attn: bool = True
    mlp_act_func_type: ActivationFuncType = ActivationFuncType.GELU
    training_mp_size: int = 1
    bigscience_bloom: bool = False
    max_out_tokens: int = 1024
    min_out_tokens: int = 1
    enable_qkv_quantization: bool = False
    use_mup: bool = False
    scale_attn_by_inverse_layer_idx: bool = False
    return_single_tuple: bool = False
    set_empty_params: bool = False
    transposed_mode: bool = False
    use_triton: bool = False
    triton_autotune: bool = False
    num_kv: int = -1
    rope_theta: float = 10000
    invert_mask: bool = True
    layer_id: int = -1
    quantization_scales: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for setting in fields(self):
            _require_kind(setting.name, getattr(self, setting.name), setting.default)
        for name, (only, why) in _FIXED.items():
            if getattr(self, name) != only:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is not served, only {only!r}: {why}"
                )
        if self.intermediate_size <= 0 < self.hidden_size:
            object.__setattr__(self, "intermediate_size", 4 * self.hidden_size)
        self._require_sizes()
        self._require_dtype()
        self._require_rotary()

    def _require_sizes(self) -> None:
        for name in ("mp_size", "window_size", "max_out_tokens", "min_out_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; found {getattr(self, name)}")
        for name in ("layer_norm_eps", "rope_theta"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0; found {getattr(self, name)}")
        if self.min_out_tokens > self.max_out_tokens:
            raise ConfigError(
                f"min_out_tokens must be at most max_out_tokens; found {self.min_out_tokens} and "
                f"{self.max_out_tokens}"
            )
        self._require_divides("heads", "hidden_size")
        self._require_divides("num_kv", "heads")
        self._require_divides("mp_size", "heads")
        if 0 < self.num_hidden_layers <= self.layer_id:
            raise ConfigError(
                f"layer_id must be below num_hidden_layers = {self.num_hidden_layers}; found "
                f"{self.layer_id}"
            )

    def _require_divides(self, name: str, of: str) -> None:
        part, whole = getattr(self, name), getattr(self, of)
        if part > 0 and whole > 0 and whole % part:
            raise ConfigError(f"{name} must divide {of}; found {name}={part} with {of}={whole}")

    def _require_dtype(self) -> None:
        if self.dtype not in DTYPES.values():
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}; found {self.dtype}")
        if self.norm_type not in (NormType.LayerNorm, NormType.RMSNorm):
            raise ConfigError(f"norm_type must be LayerNorm or RMSNorm; found {self.norm_type!r}")
        quantized = self.dtype is torch.int8
        for name, given in (
            ("quantization_scales", bool(self.quantization_scales)),
            ("enable_qkv_quantization", self.enable_qkv_quantization),
        ):
            if given and not quantized:
                raise ConfigError(f"{name} is given; it needs dtype=torch.int8, not {self.dtype}")
        if self.triton_autotune and quantized:
            raise ConfigError("triton_autotune tunes a floating point linear, not dtype=torch.int8")
        if self.triton_autotune and self.hidden_size < 1:
            raise ConfigError("triton_autotune needs to know hidden_size")

    def _require_rotary(self) -> None:
        if self.rotary_dim <= 0:
            return
        if self.rotary_dim % 2:
            raise ConfigError(f"rotary_dim must be even; found {self.rotary_dim}")
        if self.rotate_half == self.rotate_every_two:
            raise ConfigError(
                f"rotary_dim={self.rotary_dim} needs one of rotate_half and rotate_every_two; "
                f"found both {self.rotate_half}"
            )

    @property
    def epsilon(self) -> float:
        """``layer_norm_eps``, under the name it is kept by in DeepSpeed."""
        return self.layer_norm_eps

    @property
    def norm_factor(self) -> float:
        """The root of what attention scores are multiplied by: of ``1/sqrt(D)`` for heads of D
        elements, under ``use_mup`` of ``1/D``; with ``scale_attn_by_inverse_layer_idx`` that
        divided by ``layer_id + 1``; 1 without ``scale_attention``."""
        if not self.scale_attention:
            return 1.0
        if self.hidden_size < 1 or self.heads < 1:
            raise ConfigError("norm_factor needs to know hidden_size and heads")
        size = self.hidden_size // self.heads
        factor = size**-0.5 if self.use_mup else size**-0.25
        if not self.scale_attn_by_inverse_layer_idx:
            return float(factor)
        if self.layer_id < 0:
            raise ConfigError("scale_attn_by_inverse_layer_idx needs to know layer_id")
        return float(factor * (self.layer_id + 1) ** -0.5)

    @classmethod
    def from_dict(cls, json_object: Mapping[str, Any]) -> InferenceConfig:
        """From a dict, in which enums and dtypes may be names ("RMSNorm", "bf16"), enums also
        numbers. ConfigError for a key that is no setting."""
        settings = dict(json_object)
        require_known(settings, [*(setting.name for setting in fields(cls)), "epsilon"])
        if "epsilon" in settings:
            if "layer_norm_eps" in settings:
                raise ConfigError("epsilon and layer_norm_eps are one setting; give one of them")
            settings["layer_norm_eps"] = settings.pop("epsilon")
        for name, read in READ.items():
            if name in settings:
                settings[name] = read(settings[name])
        return cls(**settings)

    @classmethod
    def from_json_file(cls, json_file: str | os.PathLike[str]) -> InferenceConfig:
        """From a file with one JSON object, in UTF-8 or UTF-16; see :meth:`from_dict`."""
        return cls.from_dict(read_json(json_file))


def _require_kind(name: str, value: Any, default: Any) -> None:
    """``value`` is of the default's type; a whole number will do for a number."""
    if isinstance(default, bool) or isinstance(value, bool):
        fits, kind = isinstance(value, bool) and isinstance(default, bool), "True or False"
        kind = kind if isinstance(default, bool) else "a number, not a truth value"
    elif isinstance(default, (IntEnum, torch.dtype)):
        fits, kind = isinstance(value, type(default)), f"a {type(default).__name__}"
    elif name in ("layer_norm_eps", "rope_theta"):
        fits, kind = isinstance(value, (int, float)), "a number"
    elif isinstance(default, int):
        fits, kind = isinstance(value, int), "a whole number"
    else:
        fits = isinstance(value, Mapping) and all(isinstance(t, Tensor) for t in value.values())
        kind = "a dict of tensors by the names of weights"
    if not fits:
        raise ConfigError(f"{name} must be {kind}; found {value!r:.120}")
