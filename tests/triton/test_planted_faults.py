"""A fault in a kernel's source is seen by conformance under the interpreter."""

import pytest

pytest.importorskip("triton", reason="the kernels need triton, which compiles for GPUs alone")

from interpreter import backend
from planted import Fault, planted

from accel_conformance.selection import Selection
from accel_conformance.session import prepare
from accel_conformance.subject import installed_too

OF_PRODUCTS = [
    Fault("dropped_tail", "linear", "product",
          "range(0, k_size, K)", "range(0, k_size - K + 1, K)"),
    Fault("last_row_masked", "linear", "product",
          "(rows < m)[:, None] & (ks < k_size)", "(rows < m - 1)[:, None] & (ks < k_size)"),
    Fault("strides_ignored", "linear", "product", "[None, :] * x_k", "[None, :]"),
    Fault("accumulated_in_bf16", "linear", "product",
          'input_precision="ieee")', 'input_precision="ieee").to(tl.bfloat16).to(tl.float32)'),
    Fault("chunks_by_the_number_of_rows", "linear", "linear",
          "K=CHUNK[x.dtype]", "K=CHUNK[x.dtype] * (1 if m <= 16 else 2)", rows=True),
    Fault("halves_of_a_byte_swapped", "quantized_linear", "quantized_linear",
          "tl.join((pair & 15) - 8, (pair >> 4) - 8)", "tl.join((pair >> 4) - 8, (pair & 15) - 8)"),
    Fault("first_group_s_scale", "quantized_linear", "quantized_linear",
          "(k // group) * s_group", "0 * (k // group) * s_group"),
    Fault("next_expert_s_weight", "grouped_linear", "grouped_linear",
          "w + expert.to(tl.int64)", "w + tl.minimum(expert + 1, experts - 1).to(tl.int64)"),
    Fault("bias_left_out_of_tiles", "tiled_linear", "tiled_linear",
          "z = add_columns(sums[i], b, cols, n, b_step)", "z = sums[i]"),
    Fault("mean_left_in", "norm_linear", "norm_linear",
          "normed = (block.to(tl.float32) - means[i])", "normed = block.to(tl.float32)"),
    Fault("gate_and_up_swapped", "gated_linear", "gated_linear",
          "rows, w_gate, w_up, b_gate,", "rows, w_up, w_gate, b_gate,"),
    Fault("scale_left_out", "lora_linear", "lora_linear", "+ scale * low", "+ low"),
]  # fmt: skip


def failures(fault, op, folder, area):
    """What conformance says of an op's kernel with the fault, in fp32."""
    level = "smoke" if area == "rows" else "full"
    with (
        planted(fault, folder) as package,
        installed_too((backend.plugin("planted", package),)),
    ):
        selection = Selection([op], ["planted.triton"], ["float32"], level=level)
        session = prepare("planted", selection)
        results = [session.run(case) for case in session.cases if case.area == area]
    assert results
    return [result for result in results if result.outcome.bad]


@pytest.mark.parametrize("fault", OF_PRODUCTS, ids=lambda fault: fault.name)
def test_a_fault_is_seen(fault, tmp_path):
    found = failures(fault, fault.op, tmp_path, "rows" if fault.rows else "ops")
    assert found


def test_a_copy_without_a_fault_passes(tmp_path):
    assert not failures(None, "linear", tmp_path, "ops")
