"""A fault in a kernel's source is seen by conformance under the interpreter."""

import pytest

pytest.importorskip("triton", reason="the kernels need triton, which compiles for GPUs alone")

from faults_of_rows import MORE_OF_ROWS, OF_ROWS
from interpreter import backend
from planted import Fault, planted

from accel_conformance.selection import Selection
from accel_conformance.session import prepare
from accel_conformance.subject import installed_too

OF_PRODUCTS = [
    Fault("dropped_tail", "ops/linear/odd", "product",
          "range(0, k_size, K)", "range(0, k_size - K + 1, K)"),
    Fault("last_row_masked", "ops/linear/odd", "product",
          "(rows < m)[:, None] & (ks < k_size)", "(rows < m - 1)[:, None] & (ks < k_size)"),
    Fault("strides_ignored", "ops/linear/layout_transposed", "product",
          "[None, :] * x_k", "[None, :]"),
    Fault("accumulated_in_bf16", "ops/linear/odd", "product",
          'input_precision="ieee")', 'input_precision="ieee").to(tl.bfloat16).to(tl.float32)'),
    Fault("chunks_by_the_number_of_rows", "rows/linear/even", "linear",
          "K=CHUNK[x.dtype]", "K=CHUNK[x.dtype] * (1 if m <= 16 else 2)"),
    Fault("halves_of_a_byte_swapped", "ops/quantized_linear/nibbles", "quantized_linear",
          "tl.join((pair & 15) - 8, (pair >> 4) - 8)", "tl.join((pair >> 4) - 8, (pair & 15) - 8)"),
    Fault("first_group_s_scale", "ops/quantized_linear/nibbles_grouped", "quantized_linear",
          "(k // group) * s_group", "0 * (k // group) * s_group"),
    Fault("next_expert_s_weight", "ops/grouped_linear/odd", "grouped_linear",
          "w + expert.to(tl.int64)", "w + tl.minimum(expert + 1, experts - 1).to(tl.int64)"),
    Fault("bias_left_out", "ops/tiled_linear/odd", "tiled_linear",
          "z = add_columns(sums[i], b, cols, n, b_step)", "z = sums[i]"),
    Fault("mean_left_in", "ops/norm_linear/even", "norm_linear",
          "normed = (block.to(tl.float32) - means[i])", "normed = block.to(tl.float32)"),
    Fault("gate_and_up_swapped", "ops/gated_linear/odd", "gated_linear",
          "rows, w_gate, w_up, b_gate,", "rows, w_up, w_gate, b_gate,"),
    Fault("scale_left_out", "ops/lora_linear/odd", "lora_linear", "+ scale * low", "+ low"),
]  # fmt: skip


FAULTS = [*OF_PRODUCTS, *OF_ROWS]
SLOW = [pytest.param(fault, marks=pytest.mark.slow) for fault in MORE_OF_ROWS]


def outcomes(cases, package):
    """What conformance says of cases in fp32, with the kernels of a package."""
    with installed_too((backend.plugin("planted", package),)):
        for case in cases:
            area, op, sample = case.split("/")
            pattern = f"{area}/{op}/planted.triton/float32/{sample}"
            session = prepare("planted", Selection([op], cases=[pattern]))
            (result,) = map(session.run, session.cases)
            yield result.outcome


@pytest.mark.parametrize("fault", [*FAULTS, *SLOW], ids=lambda fault: fault.name)
def test_a_fault_is_seen(fault, tmp_path):
    with planted(fault, tmp_path) as package:
        (found,) = outcomes([fault.case], package)
    assert found.bad


@pytest.mark.parametrize(
    "faults", [FAULTS, pytest.param(MORE_OF_ROWS, marks=pytest.mark.slow)], ids=["quick", "more"]
)
def test_without_a_fault_the_same_passes(faults, tmp_path):
    cases = sorted({fault.case for fault in faults})
    with planted(None, tmp_path) as package:
        found = list(outcomes(cases, package))
    assert [outcome.value for outcome in found] == ["passed"] * len(cases)
