"""Contracts: what each op promises, one file per op.

A contract is the schema, the meaning (reference), the gradient, the error budget, the inputs that
test it and the cost. Layers, backends, conformance and benchmarks read it; it knows none of them.
"""

from accel.contracts.contract import BadInput, Contract, Cost, Sample, Tolerance
from accel.contracts.gated_linear import GATED_LINEAR
from accel.contracts.linear import LINEAR
from accel.contracts.rms_norm import RMS_NORM

CONTRACTS: dict[str, Contract] = {
    contract.name: contract for contract in (LINEAR, GATED_LINEAR, RMS_NORM)
}

__all__ = [
    "CONTRACTS",
    "GATED_LINEAR",
    "LINEAR",
    "RMS_NORM",
    "BadInput",
    "Contract",
    "Cost",
    "Sample",
    "Tolerance",
]
