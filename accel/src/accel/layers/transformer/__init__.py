"""A BERT-style transformer layer for training, with DeepSpeed's settings, parameters and names."""

from accel.layers.transformer.bert import bert_layer_config, from_bert, to_bert
from accel.layers.transformer.config import TransformerConfig, TransformerLayerConfig
from accel.layers.transformer.function import TransformerFunction
from accel.layers.transformer.layer import TransformerLayer

__all__ = [
    "TransformerConfig",
    "TransformerFunction",
    "TransformerLayer",
    "TransformerLayerConfig",
    "bert_layer_config",
    "from_bert",
    "to_bert",
]
