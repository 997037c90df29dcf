"""TransformerConfig and TransformerLayerConfig: DeepSpeed's settings, checked, and ours."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from accel.contracts.activation import ACTIVATIONS
from accel.errors import ConfigError, close_matches
from accel.settings import Fixed, read_json, require_known

_NOT_GIVEN = -1
_Config = TypeVar("_Config", bound="TransformerConfig")


@dataclass(unsafe_hash=True)
class TransformerConfig(Fixed):
    """Sizes and rates of a transformer layer; -1 means "not given". Bad ones raise ConfigError.

    ``batch_size``           of no effect: a layer takes batches of any size
    ``hidden_size``          H, a multiple of ``heads``
    ``intermediate_size``    of the inner layer; 0 or less: four times ``hidden_size``
    ``attn_dropout_ratio``   of attention probabilities; not given: 0
    ``hidden_dropout_ratio`` of what either half adds to the residual stream; not given: 0
    ``num_hidden_layers``    of the model, for ``adjust_init_range``
    ``initializer_range``    standard deviation of new weights; not given: 0.02

    A config can be shared by any number of layers: nothing writes to it, neither a layer nor a
    user, who calls :func:`dataclasses.replace`.
    """

    batch_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    attn_dropout_ratio: float
    hidden_dropout_ratio: float
    num_hidden_layers: int
    initializer_range: float

    def __post_init__(self) -> None:
        for name in ("batch_size", "hidden_size", "heads", "num_hidden_layers"):
            _require_count(name, getattr(self, name))
        _require_int("intermediate_size", self.intermediate_size)
        for name in ("attn_dropout_ratio", "hidden_dropout_ratio"):
            _require_ratio(name, getattr(self, name))
        _require_number("initializer_range", self.initializer_range)
        if not (self.initializer_range >= 0 or self.initializer_range == _NOT_GIVEN):
            raise ConfigError(
                f"initializer_range must be at least 0, or -1 for not given; found "
                f"{self.initializer_range}"
            )
        if self.intermediate_size <= 0 < self.hidden_size:
            object.__setattr__(self, "intermediate_size", 4 * self.hidden_size)
        if self.heads > 0 and self.hidden_size > 0 and self.hidden_size % self.heads:
            raise ConfigError(
                f"heads must divide hidden_size; found heads={self.heads} with "
                f"hidden_size={self.hidden_size}"
            )

    @classmethod
    def from_dict(cls: type[_Config], settings: Mapping[str, Any]) -> _Config:
        """From a dict; ConfigError for a key that is no setting or a setting that is missing."""
        require_known(settings, [setting.name for setting in fields(cls)])
        try:
            return cls(**settings)
        except TypeError as error:  # TransformerConfig has no defaults
            raise ConfigError(f"{cls.__name__}: {error}") from None

    @classmethod
    def from_json_file(cls: type[_Config], json_file: str | os.PathLike[str]) -> _Config:
        """From a file with one JSON object, in UTF-8 or UTF-16, with or without a byte order mark.

        ConfigError for another encoding, for what is no JSON and for JSON that is no object.
        """
        return cls.from_dict(read_json(json_file))

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, as :meth:`from_dict` takes them."""
        return asdict(self)


@dataclass(unsafe_hash=True)
class TransformerLayerConfig(TransformerConfig):
    """Settings of a :class:`TransformerLayer`, under DeepSpeed's names, in its order, with its
    defaults (``DeepSpeedTransformerConfig``):

    ``layer_norm_eps``          inside the root
    ``local_rank``              index of the device to make parameters on; not given: the default
    ``seed``                    0 or more: each layer draws its dropout from a generator of its own
                                (see :class:`TransformerLayer`); else from torch's default one
    ``fp16``                    parameters are made in float16, unless the layer is given a dtype
    ``pre_layer_norm``          norms before attention and MLP; else after the residual sums
    ``normalize_invertible``    recover the inputs of norms from their results, not keep them. No
                                weight of a norm may be 0
    ``gelu_checkpoint``         compute the activation again in the backward, not keep it
    ``attn_dropout_checkpoint`` of no effect: probabilities are never kept, but computed again
    ``adjust_init_range``       where ``num_hidden_layers`` is given, new weights that write to the
                                residual stream are smaller by sqrt(2 * num_hidden_layers)
    ``stochastic_mode``         permit kernels whose sums depend on the shape of the batch, outside
                                ``torch.compile``
    ``return_tuple``            forward returns ``(result,)``
    ``training``                the mode a layer is made in

    Ours:

    ``act``                     of the inner layer; DeepSpeed's is the tanh form of GELU
    ``causal``                  no position sees a later one

    The flags about memory change no result and no random number.
    """

    batch_size: int = -1
    hidden_size: int = -1
    intermediate_size: int = -1
    heads: int = -1
    attn_dropout_ratio: float = -1
    hidden_dropout_ratio: float = -1
    num_hidden_layers: int = -1
    initializer_range: float = -1
    layer_norm_eps: float = 1e-12
    local_rank: int = -1
    seed: int = -1
    fp16: bool = False
    pre_layer_norm: bool = True
    normalize_invertible: bool = False
    gelu_checkpoint: bool = False
    adjust_init_range: bool = True
    attn_dropout_checkpoint: bool = False
    stochastic_mode: bool = False
    return_tuple: bool = False
    training: bool = True
    act: str = "gelu_tanh"
    causal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(setting.default, bool) and not isinstance(value, bool):
                raise ConfigError(f"{setting.name} must be True or False, not {value!r}")
        _require_number("layer_norm_eps", self.layer_norm_eps)
        if not self.layer_norm_eps >= 0:
            raise ConfigError(f"layer_norm_eps must be at least 0, not {self.layer_norm_eps!r}")
        _require_int("local_rank", self.local_rank)
        _require_int("seed", self.seed)
        if self.act not in tuple(ACTIVATIONS):  # a tuple also says no to what cannot be hashed
            known = close_matches(str(self.act), ACTIVATIONS)
            raise ConfigError(f"unknown act {self.act!r}; {known}")

    def op_options(self, training: bool) -> dict[str, Any]:
        """The options of :func:`accel.ops.transformer_layer`; only training drops anything."""
        attn_dropout, hidden_dropout = (
            max(ratio, 0.0) if training else 0.0
            for ratio in (self.attn_dropout_ratio, self.hidden_dropout_ratio)
        )
        # __float__: a constant, where torch.compile would make it a symbol.
        return {
            "heads": self.heads,
            "pre_norm": self.pre_layer_norm,
            "causal": self.causal,
            "act": self.act,
            "eps": self.layer_norm_eps.__float__(),
            "attn_dropout": attn_dropout.__float__(),
            "hidden_dropout": hidden_dropout.__float__(),
        }


def _require_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be an int, not {value!r}")


def _require_count(name: str, value: Any) -> None:
    _require_int(name, value)
    if value < 1 and value != _NOT_GIVEN:
        raise ConfigError(f"{name} must be at least 1, or -1 for not given; found {value}")


def _require_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ConfigError(f"{name} must be a number, not {value!r}")


def _require_ratio(name: str, value: Any) -> None:
    _require_number(name, value)
    if not (0 <= value <= 1 or value == _NOT_GIVEN):
        raise ConfigError(f"{name} must lie in [0, 1], or be -1 for not given; found {value}")
