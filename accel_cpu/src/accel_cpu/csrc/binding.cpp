// The ops that torch knows, in one file, as torch's headers cost it ten seconds to compile. The
// files included check metadata and turn tensors into plain arguments (kernels.h). Schemas carry no
// fake kernel and no gradient: those come from the contracts, in Python.
#include <string>
#include <vector>

#include "binding_attention.h"
#include "binding_experts.h"
#include "binding_linear.h"
#include "binding_logprob.h"
#include "binding_norm_linear.h"
#include "binding_rows.h"
#include "binding_softmax.h"
#include "binding_transformer.h"
#include "team.h"

namespace accel_cpu {
namespace {

void tune(int64_t m, int64_t n, int64_t k, at::ScalarType dtype, bool alone, int64_t columns) {
  tune_linear(m, n, k, dtype_of("tune_linear", "dtype", dtype), {alone, columns});
}

// Of addresses, since the one who calls it, graph.cpp, is another library's.
void in_team_of(int64_t work, int64_t context) {
  in_team(reinterpret_cast<TeamWork>(work), reinterpret_cast<void*>(context));
}

std::string isa() { return kernels().isa; }

TORCH_LIBRARY_FRAGMENT(accel_cpu_kernels, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "linear_native(Tensor x, Tensor w, Tensor? b=None, str? act=None, "
      "ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def(
      "linear_recorded(Tensor x, Tensor w, Tensor? b, str act, ScalarType? out_dtype) "
      "-> (Tensor, Tensor)",
      tags);
  m.def(
      "gated_linear_native(Tensor x, Tensor w_gate, Tensor w_up, Tensor? b_gate=None, "
      "Tensor? b_up=None, str act=\"silu\", ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def(
      "gated_linear_recorded(Tensor x, Tensor w_gate, Tensor w_up, Tensor? b_gate, Tensor? b_up, "
      "str act, ScalarType? out_dtype) -> (Tensor, Tensor, Tensor)",
      tags);
  m.def(
      "lora_linear_native(Tensor x, Tensor w, Tensor lora_a, Tensor lora_b, Tensor? b=None, "
      "float scale=1.0, ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def(
      "quantized_linear_native(Tensor x, Tensor w, Tensor scales, Tensor? b=None, int bits=8, "
      "str? act=None, ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def(
      "tiled_linear_native(Tensor x, Tensor w, Tensor? b=None, Tensor? partial=None, "
      "ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def(
      "tiled_linear_native_into(Tensor x, Tensor w, Tensor? b, Tensor? partial, Tensor(a!) out) "
      "-> ()",
      tags);
  m.def(
      "logprob_native(Tensor x, Tensor ids, Tensor? w=None, Tensor? b=None, float scale=1.0, "
      "float? softcap=None, float temperature=1.0) -> (Tensor, Tensor)",
      tags);
  m.def(
      "grouped_linear_native(Tensor x, Tensor w, Tensor ends, Tensor? b=None, str? act=None, "
      "ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def("grouped_weight_gradient(Tensor grad, Tensor x, Tensor ends) -> Tensor", tags);
  m.def("isa() -> str", tags);
  m.impl("isa", c10::DispatchKey::CompositeExplicitAutograd, BOXED(isa));
  m.def("in_team(int work, int context) -> ()", tags);
  m.impl("in_team", c10::DispatchKey::CompositeExplicitAutograd, BOXED(in_team_of));
  m.def(
      "tune_linear(int m, int n, int k, ScalarType dtype, bool alone, int columns) -> ()", tags);
  m.impl("tune_linear", c10::DispatchKey::CompositeExplicitAutograd, BOXED(tune));
  m.def("rms_norm_native(Tensor x, Tensor? w=None, float eps=1e-06) -> Tensor", tags);
  m.def("layer_norm_native(Tensor x, Tensor? w=None, Tensor? b=None, float eps=1e-05) -> Tensor",
        tags);
  m.def(
      "add_norm_native(Tensor x, Tensor residual, Tensor? w=None, Tensor? b=None, "
      "str kind='rms', float eps=1e-05) -> (Tensor, Tensor)",
      tags);
  m.def(
      "norm_gradients(Tensor grad, Tensor x, Tensor? residual, Tensor? total_grad, Tensor? w, "
      "str kind, float eps, bool[3] needs) -> (Tensor, Tensor, Tensor)",
      tags);
  m.def("bias_act_native(Tensor x, Tensor? b=None, str? act=None) -> Tensor", tags);
  m.def(
      "bias_act_gradients(Tensor grad, Tensor x, Tensor? b, str? act, bool[2] needs) "
      "-> (Tensor, Tensor)",
      tags);
  m.def(
      "gate_gradients(Tensor grad, Tensor gate, Tensor up, str act, ScalarType dtype) "
      "-> (Tensor, Tensor)",
      tags);
  m.def(
      "dropout_add_native(Tensor x, Tensor? residual=None, Tensor? b=None, Tensor? seed=None, "
      "Tensor? rows=None, float p=0.0) -> Tensor",
      tags);
  m.def(
      "dropout_add_gradients(Tensor grad, Tensor? seed, Tensor? rows, float p, bool[2] needs) "
      "-> (Tensor, Tensor)",
      tags);
  m.def(
      "norm_linear_native(Tensor x, Tensor w, Tensor? norm_w=None, Tensor? norm_b=None, "
      "Tensor? b=None, str kind='rms', float eps=1e-06, str? act=None, "
      "ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def("softmax_native(Tensor x, Tensor? mask=None, float scale=1.0) -> Tensor", tags);
  m.def("softmax_gradient(Tensor grad, Tensor p, float scale) -> Tensor", tags);
  m.def(
      "logprob_gradients(Tensor z, Tensor ids, Tensor? anchors, Tensor chosen, Tensor entropy, "
      "Tensor? of_logprob, Tensor? of_entropy, float scale, float? softcap, float temperature, "
      "ScalarType out_dtype, bool sums) -> (Tensor, Tensor)",
      tags);
  m.def("rotary_native(Tensor x, Tensor cos, Tensor sin, bool interleaved=False) -> Tensor", tags);
  m.def("embedding_native(Tensor ids, Tensor w) -> Tensor", tags);
  const std::string attention =
      "Tensor q, Tensor k, Tensor v, Tensor spans, Tensor? mask=None, Tensor? slopes=None, "
      "Tensor? seed=None, bool causal=True, float? scale=None, int? window=None, "
      "float? softcap=None, float dropout=0.0)";
  m.def(("attention_native(" + attention + " -> Tensor").c_str(), tags);
  m.def(("attention_recorded(" + attention + " -> (Tensor, Tensor)").c_str(), tags);
  m.def(("attention_gradients(Tensor grad, Tensor out, Tensor log_sums, bool[3] needs, " +
         attention + " -> (Tensor, Tensor, Tensor)").c_str(), tags);
}

TORCH_LIBRARY_IMPL(accel_cpu_kernels, CPU, m) {
  m.impl("linear_native", BOXED(linear_native));
  m.impl("linear_recorded", BOXED(linear_recorded));
  m.impl("gated_linear_native", BOXED(gated_linear_native));
  m.impl("gated_linear_recorded", BOXED(gated_linear_recorded));
  m.impl("lora_linear_native", BOXED(lora_linear_native));
  m.impl("quantized_linear_native", BOXED(quantized_linear_native));
  m.impl("tiled_linear_native", BOXED(tiled_linear_native));
  m.impl("tiled_linear_native_into", BOXED(tiled_linear_native_into));
  m.impl("logprob_native", BOXED(logprob_native));
  m.impl("grouped_linear_native", BOXED(grouped_linear_native));
  m.impl("grouped_weight_gradient", BOXED(grouped_weight_gradient));
  m.impl("rms_norm_native", BOXED(rms_norm_native));
  m.impl("layer_norm_native", BOXED(layer_norm_native));
  m.impl("add_norm_native", BOXED(add_norm_native));
  m.impl("norm_gradients", BOXED(norm_gradients));
  m.impl("bias_act_native", BOXED(bias_act_native));
  m.impl("bias_act_gradients", BOXED(bias_act_gradients));
  m.impl("gate_gradients", BOXED(gate_gradients));
  m.impl("dropout_add_native", BOXED(dropout_add_native));
  m.impl("dropout_add_gradients", BOXED(dropout_add_gradients));
  m.impl("norm_linear_native", BOXED(norm_linear_native));
  m.impl("softmax_native", BOXED(softmax_native));
  m.impl("softmax_gradient", BOXED(softmax_gradient));
  m.impl("logprob_gradients", BOXED(logprob_gradients));
  m.impl("rotary_native", BOXED(rotary_native));
  m.impl("embedding_native", BOXED(embedding_native));
  m.impl("attention_native", BOXED(attention_native));
  m.impl("attention_recorded", BOXED(attention_recorded));
  m.impl("attention_gradients", BOXED(attention_gradients));
}

}  // namespace
}  // namespace accel_cpu
