"""Contracts: what each op promises, one file per op.

A contract is the schema, the meaning (reference), the gradient, the error budget, the inputs that
test it and the cost. Layers, backends, conformance and benchmarks read it; it knows none of them.
"""

from accel.contracts.add_norm import ADD_NORM
from accel.contracts.attention import ATTENTION
from accel.contracts.bias_act import BIAS_ACT
from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance
from accel.contracts.dropout_add import DROPOUT_ADD
from accel.contracts.embedding import EMBEDDING
from accel.contracts.gated_linear import GATED_LINEAR
from accel.contracts.grouped_linear import GROUPED_LINEAR
from accel.contracts.layer_norm import LAYER_NORM
from accel.contracts.linear import LINEAR
from accel.contracts.logprob import LOGPROB
from accel.contracts.lora_linear import LORA_LINEAR
from accel.contracts.norm_linear import NORM_LINEAR
from accel.contracts.quantized_linear import QUANTIZED_LINEAR
from accel.contracts.rms_norm import RMS_NORM
from accel.contracts.rotary import ROTARY
from accel.contracts.softmax import SOFTMAX
from accel.contracts.tiled_linear import TILED_LINEAR
from accel.contracts.tiled_mlp import TILED_MLP
from accel.contracts.transformer_layer import TRANSFORMER_LAYER

CONTRACTS: dict[str, Contract] = {
    contract.name: contract
    for contract in (
        LINEAR, GATED_LINEAR, NORM_LINEAR, LORA_LINEAR, QUANTIZED_LINEAR, GROUPED_LINEAR,
        LAYER_NORM, RMS_NORM, ADD_NORM, BIAS_ACT, ROTARY, SOFTMAX, DROPOUT_ADD, EMBEDDING,
        ATTENTION, TRANSFORMER_LAYER,
        TILED_LINEAR, TILED_MLP, LOGPROB,
    )
}  # fmt: skip

__all__ = [
    "ADD_NORM",
    "ATTENTION",
    "BIAS_ACT",
    "CONTRACTS",
    "DROPOUT_ADD",
    "EMBEDDING",
    "GATED_LINEAR",
    "GROUPED_LINEAR",
    "LAYER_NORM",
    "LINEAR",
    "LOGPROB",
    "LORA_LINEAR",
    "NORM_LINEAR",
    "QUANTIZED_LINEAR",
    "RMS_NORM",
    "ROTARY",
    "SOFTMAX",
    "TILED_LINEAR",
    "TILED_MLP",
    "TRANSFORMER_LAYER",
    "BadInput",
    "Contract",
    "Cost",
    "Sample",
    "Tolerance",
]
