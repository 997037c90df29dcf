"""The inference ops: DeepSpeed's op bindings, as short compositions of ops.

Each is made from an :class:`InferenceConfig`, serves every device through the registry, returns
tensors of its own and writes to none of the caller's.
"""

from accel.layers.inference.attention import SoftmaxContextOp, SoftmaxOp
from accel.layers.inference.autotune import Tuned
from accel.layers.inference.base import BaseOp
from accel.layers.inference.config import InferenceConfig
from accel.layers.inference.elementwise import (
    BiasAddOp,
    BiasGeluOp,
    BiasReluOp,
    BiasResidualOp,
    EinsumSecSmEcmOp,
    GatedActivationOp,
    MoEResMatmulOp,
    ResidualAddOp,
    VectorAddOp,
)
from accel.layers.inference.flash import PadTransformOp
from accel.layers.inference.linear import LinearOp, VectorMatMulOp
from accel.layers.inference.mlp import GELUGemmOp, MLPGemmOp, QKVGemmOp
from accel.layers.inference.names import ActivationFuncType, NormType
from accel.layers.inference.norms import LayerNormOp, PreRMSNormOp, RMSNormOp
from accel.layers.inference.workspace import WorkspaceOp

__all__ = [
    "ActivationFuncType",
    "BaseOp",
    "BiasAddOp",
    "BiasGeluOp",
    "BiasReluOp",
    "BiasResidualOp",
    "EinsumSecSmEcmOp",
    "GELUGemmOp",
    "GatedActivationOp",
    "InferenceConfig",
    "LayerNormOp",
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
    "Tuned",
    "VectorAddOp",
    "VectorMatMulOp",
    "WorkspaceOp",
]
