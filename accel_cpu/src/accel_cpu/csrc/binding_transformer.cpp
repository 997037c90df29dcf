// The torch side of the ops of a transformer other than its products.
#include <algorithm>
#include <cmath>
#include <string>

#include "binding.h"
#include "binding_attention.h"
#include "binding_norm_linear.h"
#include "binding_rows.h"
#include "binding_softmax.h"

namespace accel_cpu {
namespace {

void check_turns(const char* op, const char* name, const at::Tensor& t, const at::Tensor& x,
                 int64_t r) {
  at::DimVector shape(x.sizes().slice(0, x.dim() - 2));
  shape.push_back(r);
  TORCH_CHECK(t.sizes() == shape, op, ": ", name, " has shape ", t.sizes(), "; beside x of shape ",
              x.sizes(), " and cos it must be ", at::IntArrayRef(shape));
  TORCH_CHECK(t.scalar_type() == at::kFloat, op, ": ", name, " is ", t.scalar_type(),
              "; it must be Float");
}

at::Tensor rotary_native(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                         bool interleaved) {
  const char* op = "rotary_native";
  TORCH_CHECK(x.dim() >= 2, op, ": x must be [..., H, D], but has shape ", x.sizes());
  TORCH_CHECK(cos.dim() >= 1 && 2 * cos.size(-1) <= x.size(-1), op, ": cos must be [..., R / 2] ",
              "with R at most D = ", x.size(-1), ", but has shape ", cos.sizes());
  RotaryArgs args;
  args.r = cos.size(-1);
  check_turns(op, "cos", cos, x, args.r);
  check_turns(op, "sin", sin, x, args.r);
  args.dtype = dtype_of(op, "x", x.scalar_type());
  at::Tensor out = at::empty(x.sizes(), x.options());
  if (out.numel() == 0) return out;

  at::Tensor rows = x, cosines = cos, sines = sin;
  args.interleaved = interleaved;
  args.d = x.size(-1);
  args.h = x.size(-2);
  args.m = x.numel() / (args.h * args.d);
  args.x = heads_of(rows);
  args.cos = matrix_of(cosines);
  args.sin = matrix_of(sines);
  args.out = out.mutable_data_ptr();
  rotary(args, at::get_num_threads());
  return out;
}

at::Tensor embedding_native(const at::Tensor& ids, const at::Tensor& w) {
  const char* op = "embedding_native";
  TORCH_CHECK(w.dim() == 2, op, ": w must be [V, H], but has shape ", w.sizes());
  TORCH_CHECK(ids.scalar_type() == at::kLong || ids.scalar_type() == at::kInt, op, ": ids is ",
              ids.scalar_type(), "; possible are Long and Int");
  const at::Tensor wide = ids.to(at::kLong).contiguous();
  EmbeddingArgs args;
  args.ids = wide.const_data_ptr<int64_t>();
  args.m = wide.numel();
  for (int64_t i = 0; i < args.m; ++i) {
    TORCH_CHECK_INDEX(0 <= args.ids[i] && args.ids[i] < w.size(0), op, ": ids holds ", args.ids[i],
                      " at position ", i, "; w has V = ", w.size(0), " rows");
  }
  at::DimVector shape(ids.sizes());
  shape.push_back(w.size(1));
  at::Tensor out = at::empty(shape, w.options());
  if (out.numel() == 0) return out;

  at::Tensor rows = w;
  args.w = matrix_of(rows);
  args.k = w.size(1);
  args.element_size = w.element_size();
  args.out = out.mutable_data_ptr();
  embedding(args, at::get_num_threads());
  return out;
}

TORCH_LIBRARY_FRAGMENT(accel_cpu_kernels, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
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
  m.impl("rms_norm_native", TORCH_FN(rms_norm_native));
  m.impl("layer_norm_native", TORCH_FN(layer_norm_native));
  m.impl("add_norm_native", TORCH_FN(add_norm_native));
  m.impl("norm_gradients", TORCH_FN(norm_gradients));
  m.impl("bias_act_native", TORCH_FN(bias_act_native));
  m.impl("bias_act_gradients", TORCH_FN(bias_act_gradients));
  m.impl("dropout_add_native", TORCH_FN(dropout_add_native));
  m.impl("dropout_add_gradients", TORCH_FN(dropout_add_gradients));
  m.impl("norm_linear_native", TORCH_FN(norm_linear_native));
  m.impl("softmax_native", TORCH_FN(softmax_native));
  m.impl("softmax_gradient", TORCH_FN(softmax_gradient));
  m.impl("logprob_gradients", TORCH_FN(logprob_gradients));
  m.impl("rotary_native", TORCH_FN(rotary_native));
  m.impl("embedding_native", TORCH_FN(embedding_native));
  m.impl("attention_native", TORCH_FN(attention_native));
  m.impl("attention_recorded", TORCH_FN(attention_recorded));
  m.impl("attention_gradients", TORCH_FN(attention_gradients));
}

}  // namespace
}  // namespace accel_cpu
