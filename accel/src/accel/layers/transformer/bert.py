"""Weights and settings from and to Hugging Face's ``BertLayer``, by the names of its parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from accel.contracts import checks
from accel.errors import ConfigError, OpArgumentError, close_matches
from accel.layers.transformer.config import TransformerLayerConfig
from accel.layers.transformer.layer import TransformerLayer

# In the order of TransformerLayer.parts().
_PARTS = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip

# transformers' names of activations, and ours.
_ACTS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu",
    "silu": "silu", "swish": "silu",
}  # fmt: skip

# Settings by our names, and by those of BertConfig and of the configs like it.
_SETTINGS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "heads": "num_attention_heads",
    "attn_dropout_ratio": "attention_probs_dropout_prob",
    "hidden_dropout_ratio": "hidden_dropout_prob",
    "num_hidden_layers": "num_hidden_layers",
    "initializer_range": "initializer_range",
    "layer_norm_eps": "layer_norm_eps",
    "act": "hidden_act",
}


def bert_layer_config(config: Any, **settings: Any) -> TransformerLayerConfig:
    """Settings of a layer that does what ``BertLayer(config)`` does: norms after the sums, and the
    form of GELU that the config names. ``settings`` are put over them.

    ConfigError for what cannot be served: settings that are not BERT's, an activation of another
    name, cross-attention, outputs that transformers would look for in its own layers and return
    none of.
    """
    _require_served(config)
    found = {ours: getattr(config, theirs) for ours, theirs in _SETTINGS.items()}
    found |= {
        "act": _ACTS[config.hidden_act], "pre_layer_norm": False,
        "causal": bool(getattr(config, "is_decoder", False)),
    }  # fmt: skip
    return TransformerLayerConfig(**(found | settings))


def _require_served(config: Any) -> None:
    for output in ("output_hidden_states", "output_attentions"):
        if getattr(config, output, False):
            raise ConfigError(
                f"{output}=True would be empty: transformers records layers of the model's own "
                "class alone. Set it to False in the model's config; hidden states can be had "
                "where the model is called (TransformerLayer.forward), probabilities cannot"
            )
    if getattr(config, "add_cross_attention", False):
        raise ConfigError("a layer with cross-attention cannot be served: add_cross_attention=True")
    missing = [name for name in _SETTINGS.values() if not hasattr(config, name)]
    if missing:
        raise ConfigError(
            f"a BertLayer's config has {', '.join(_SETTINGS.values())}; a {type(config).__name__} "
            f"lacks {', '.join(missing)}"
        )
    act = config.hidden_act
    if act not in tuple(_ACTS):
        raise ConfigError(f"unknown hidden_act {act!r}; {close_matches(str(act), _ACTS)}")


def from_bert(layer: nn.Module, config: TransformerLayerConfig) -> TransformerLayer:
    """A layer with the weights of a ``BertLayer``, copied, in its dtype, device and mode.

    ``config`` is :func:`bert_layer_config` of the model's, one for all of its layers.
    """
    weights, biases = _tensors(layer)
    made = TransformerLayer(
        config, weights, biases, device=weights[0].device, dtype=weights[0].dtype
    )
    return made.train(layer.training)


@torch.no_grad()
def to_bert(layer: TransformerLayer, bert: nn.Module) -> None:
    """Copy the layer's weights into a ``BertLayer``; OpArgumentError if a shape differs, and
    nothing is copied."""
    targets = [tensor for tensors in _tensors(bert) for tensor in tensors]
    own = [tensor for tensors in layer.parts() for tensor in tensors]
    names = [f"{part}.{of}" for of in ("weight", "bias") for part in _PARTS]
    for name, target, tensor in zip(names, targets, own, strict=True):
        if target.shape != tensor.shape:
            raise OpArgumentError(
                f"to_bert: {name} must be {list(tensor.shape)}; found {checks.describe(target)}"
            )
    for target, tensor in zip(targets, own):
        target.copy_(tensor)


def _tensors(bert: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """(weights, biases) of a BertLayer, in the order of a layer's initial ones."""
    try:
        parts: list[Any] = [bert.get_submodule(path) for path in _PARTS]
    except AttributeError as error:
        found = type(bert).__name__
        raise OpArgumentError(f"a BertLayer has {', '.join(_PARTS)}; {found}: {error}") from None
    return [part.weight for part in parts], [part.bias for part in parts]
