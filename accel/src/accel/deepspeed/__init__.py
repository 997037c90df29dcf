"""DeepSpeed's names for what accel has: change the import, keep the code.

    from accel.deepspeed import DeepSpeedTransformerLayer, LinearModuleForZeroStage3, TiledLinear

Aliases, and its hybrid engine over ours; docs/deepspeed.md says of each name what is the same and
what is better on purpose. Importing this lets :func:`accel.layers.gathered` bring back parameters
that DeepSpeed's ZeRO-3 has partitioned.
"""

from __future__ import annotations

from types import ModuleType
from typing import ClassVar

from accel import ops
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
    "split_tensor_along_last_dim",
    "zero3_linear_wrap",
]


class _Builder:
    """A builder of DeepSpeed's: what it loads is :mod:`accel.ops`, whose functions find the
    device's kernels themselves, and always one."""

    NAME: ClassVar[str]
    BUILD_VAR: ClassVar[str]

    def __init__(self, name: str | None = None) -> None:
        self.name = name or self.NAME

    def absolute_name(self) -> str:
        return ops.__name__

    def is_compatible(self, verbose: bool = False) -> bool:
        return True

    def load(self, verbose: bool = False) -> ModuleType:
        return ops

    jit_load = load


class TransformerBuilder(_Builder):
    NAME, BUILD_VAR = "transformer", "DS_BUILD_TRANSFORMER"


class StochasticTransformerBuilder(TransformerBuilder):
    NAME, BUILD_VAR = "stochastic_transformer", "DS_BUILD_STOCHASTIC_TRANSFORMER"


class InferenceBuilder(_Builder):
    NAME, BUILD_VAR = "transformer_inference", "DS_BUILD_TRANSFORMER_INFERENCE"


register_gatherer(PartitionedGatherer())
