"""Layers: torch modules built from ops.

base.py           OpLayer: which ops, and what serves them
linear.py         Linear                              gather.py    bringing back sharded parameters
zero3.py          linear that keeps nothing of its weight   patching.py  in the place of torch's
tiling.py, tiled_linear.py, tiled_product.py, tiled_state.py, tiled_bias.py   a weight in tiles
tiled_mlp.py, cross_entropy.py                        tokens, and a vocabulary, in tiles
transformer/      the BERT-style layer                inference/   DeepSpeed's op bindings
"""

from accel.layers import inference
from accel.layers.base import OpLayer, explained
from accel.layers.cross_entropy import TiledCrossEntropy, tiled_cross_entropy
from accel.layers.gather import (
    Gatherer,
    PartitionedGatherer,
    gathered,
    register_gatherer,
    unregister_gatherer,
)
from accel.layers.linear import Linear
from accel.layers.patching import memory_efficient_linear, use_zero3_linear
from accel.layers.tiled_bias import TiledLinearReturnBias
from accel.layers.tiled_linear import TiledLinear
from accel.layers.tiled_mlp import TiledMLP
from accel.layers.tiling import partition_uniform, split_tensor_along_last_dim
from accel.layers.transformer import (
    TransformerConfig,
    TransformerFunction,
    TransformerLayer,
    TransformerLayerConfig,
    bert_layer_config,
    from_bert,
    to_bert,
)
from accel.layers.zero3 import (
    LinearFunctionForZeroStage3,
    LinearModuleForZeroStage3,
    autocast_custom_bwd,
    autocast_custom_fwd,
    print_rank_0,
    zero3_linear_wrap,
)

__all__ = [
    "Gatherer",
    "Linear",
    "LinearFunctionForZeroStage3",
    "LinearModuleForZeroStage3",
    "OpLayer",
    "PartitionedGatherer",
    "TiledCrossEntropy",
    "TiledLinear",
    "TiledLinearReturnBias",
    "TiledMLP",
    "TransformerConfig",
    "TransformerFunction",
    "TransformerLayer",
    "TransformerLayerConfig",
    "autocast_custom_bwd",
    "autocast_custom_fwd",
    "bert_layer_config",
    "explained",
    "from_bert",
    "gathered",
    "inference",
    "memory_efficient_linear",
    "partition_uniform",
    "print_rank_0",
    "register_gatherer",
    "split_tensor_along_last_dim",
    "tiled_cross_entropy",
    "to_bert",
    "unregister_gatherer",
    "use_zero3_linear",
    "zero3_linear_wrap",
]
