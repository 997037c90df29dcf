"""DeepSpeed's names for what accel has: change the import, keep the code.

    from accel.deepspeed import DeepSpeedTransformerLayer, LinearModuleForZeroStage3, TiledLinear

Aliases, its hybrid engine over ours, and :func:`set_deepspeed_accelerator`, by which DeepSpeed
itself runs on an accel backend; docs/deepspeed.md says of each name what is the same and what is
better on purpose. Importing this lets :func:`accel.layers.gathered` bring back parameters that
DeepSpeed's ZeRO-3 has partitioned.
"""

from __future__ import annotations

from accel.deepspeed.adapter import set_deepspeed_accelerator
from accel.deepspeed.builders import (
    InferenceBuilder,
    StochasticTransformerBuilder,
    TransformerBuilder,
)
from accel.deepspeed.hybrid_engine import DeepSpeedHybridEngine
from accel.layers import (
    LinearFunctionForZeroStage3,
    LinearModuleForZeroStage3,
    PartitionedGatherer,
    TiledLinear,
    TiledLinearReturnBias,
    TransformerConfig,
    autocast_custom_bwd,
    autocast_custom_fwd,
    partition_uniform,
    print_rank_0,
    register_gatherer,
    split_tensor_along_last_dim,
    zero3_linear_wrap,
)
from accel.layers import TransformerFunction as DeepSpeedTransformerFunction
from accel.layers import TransformerLayer as DeepSpeedTransformerLayer
from accel.layers import TransformerLayerConfig as DeepSpeedTransformerConfig
from accel.layers.inference import (
    ActivationFuncType,
    BaseOp,
    BiasAddOp,
    BiasGeluOp,
    BiasReluOp,
    BiasResidualOp,
    EinsumSecSmEcmOp,
    GatedActivationOp,
    GELUGemmOp,
    LayerNormOp,
    LinearOp,
    MLPGemmOp,
    MoEResMatmulOp,
    NormType,
    PadTransformOp,
    PreRMSNormOp,
    QKVGemmOp,
    ResidualAddOp,
    RMSNormOp,
    SoftmaxContextOp,
    SoftmaxOp,
    VectorAddOp,
    VectorMatMulOp,
    WorkspaceOp,
)
from accel.layers.inference import InferenceConfig as DeepSpeedInferenceConfig
from accel.selection import get_accelerator, set_accelerator

__all__ = [
    "ActivationFuncType",
    "BaseOp",
    "BiasAddOp",
    "BiasGeluOp",
    "BiasReluOp",
    "BiasResidualOp",
    "DeepSpeedHybridEngine",
    "DeepSpeedInferenceConfig",
    "DeepSpeedTransformerConfig",
    "DeepSpeedTransformerFunction",
    "DeepSpeedTransformerLayer",
    "EinsumSecSmEcmOp",
    "GELUGemmOp",
    "GatedActivationOp",
    "InferenceBuilder",
    "LayerNormOp",
    "LinearFunctionForZeroStage3",
    "LinearModuleForZeroStage3",
    "LinearOp",
    "MLPGemmOp",
    "MoEResMatmulOp",
    "NormType",
    "PadTransformOp",
    "PreRMSNormOp",
    "QKVGemmOp",
    "RMSNormOp",
    "ResidualAddOp",
    "SoftmaxContextOp",
    "SoftmaxOp",
    "StochasticTransformerBuilder",
    "TiledLinear",
    "TiledLinearReturnBias",
    "TransformerBuilder",
    "TransformerConfig",
    "VectorAddOp",
    "VectorMatMulOp",
    "WorkspaceOp",
    "autocast_custom_bwd",
    "autocast_custom_fwd",
    "get_accelerator",
    "partition_uniform",
    "print_rank_0",
    "set_accelerator",
    "set_deepspeed_accelerator",
    "split_tensor_along_last_dim",
    "zero3_linear_wrap",
]

register_gatherer(PartitionedGatherer())
