// The torch side of the ops of a transformer other than its products.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "binding.h"
#include "binding_rows.h"
#include "binding_softmax.h"

namespace accel_cpu {
namespace {

// Reads x, [..., heads, width], as it lies where its leading dimensions collapse into rows, else
// copies it; `x` keeps the copy alive.
Heads heads_of(at::Tensor& x) {
  if (!has_unit_stride(x) || !collapsed_stride(x, 2)) x = x.contiguous();
  return {x.const_data_ptr(), *collapsed_stride(x, 2), x.stride(-2)};
}

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

void check_attention(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& spans) {
  TORCH_CHECK(q.dim() == 3 && k.dim() == 3 && v.dim() == 3, op,
              ": q, k and v must be [M, H, D], [N, G, D] and [N, G, E], but have the shapes ",
              q.sizes(), ", ", k.sizes(), " and ", v.sizes());
  TORCH_CHECK(k.size(2) == q.size(2), op, ": k has shape ", k.sizes(), "; beside q of shape ",
              q.sizes(), " its heads must have D = ", q.size(2), " elements");
  TORCH_CHECK(v.size(0) == k.size(0) && v.size(1) == k.size(1), op, ": v has shape ", v.sizes(),
              "; beside k of shape ", k.sizes(), " it must be [", k.size(0), ", ", k.size(1),
              ", E]");
  TORCH_CHECK(k.size(1) > 0 && q.size(1) % k.size(1) == 0, op, ": q has H = ", q.size(1),
              " heads; they must be a multiple of the G = ", k.size(1), " heads of k");
  TORCH_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(), op,
              ": k is ", k.scalar_type(), " and v is ", v.scalar_type(),
              "; they must have the dtype of q, ", q.scalar_type());
  TORCH_CHECK(spans.dim() == 2 && spans.size(1) == 4 && spans.scalar_type() == at::kLong, op,
              ": spans must be [B, 4] and Long, but has shape ", spans.sizes(), " and is ",
              spans.scalar_type());
}

// The rows of `spans`, after a look at each: they must lie within M queries and N keys, and no two
// may hold the same query.
std::vector<Span> spans_of(const char* op, const at::Tensor& spans, int64_t m, int64_t n) {
  const at::Tensor rows = spans.contiguous();
  const int64_t* p = rows.const_data_ptr<int64_t>();
  std::vector<Span> out;
  std::vector<bool> taken(m);
  for (int64_t i = 0; i < rows.size(0); ++i, p += 4) {
    const Span s{p[0], p[1], p[2], p[3]};
    // Differences, as a sum could overflow.
    const bool queries =
        s.q_start >= 0 && s.q_len >= 0 && s.q_start <= m && s.q_len <= m - s.q_start;
    const bool keys = s.k_start >= 0 && s.k_len >= 0 && s.k_start <= n && s.k_len <= n - s.k_start;
    TORCH_CHECK_INDEX(queries && keys, op, ": span ", i, " is (q_start ", s.q_start, ", q_len ",
                      s.q_len, ", k_start ", s.k_start, ", k_len ", s.k_len,
                      "); it must lie within M = ", m, " queries and N = ", n, " keys");
    for (int64_t q = s.q_start; q < s.q_start + s.q_len; ++q) {
      TORCH_CHECK_INDEX(!taken[q], op, ": span ", i, " holds query ", q,
                        ", which is an earlier span's; a query belongs to one sequence");
      taken[q] = true;
    }
    out.push_back(s);
  }
  return out;
}

// Zeroes the rows of `out`, [M, ...], that are in no span.
void zero_rest(at::Tensor& out, const std::vector<Span>& spans) {
  std::vector<bool> taken(out.size(0));
  for (const Span& s : spans) {
    std::fill_n(taken.begin() + s.q_start, s.q_len, true);
  }
  const int64_t bytes = out.stride(0) * out.element_size();
  char* data = static_cast<char*>(out.mutable_data_ptr());
  for (int64_t i = 0; i < out.size(0); ++i) {
    if (!taken[i]) std::memset(data + i * bytes, 0, bytes);
  }
}

at::Tensor attention_native(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& spans, bool causal, std::optional<double> scale) {
  const char* op = "attention_native";
  check_attention(op, q, k, v, spans);
  AttentionArgs args;
  args.dtype = dtype_of(op, "q", q.scalar_type());
  const std::vector<Span> checked = spans_of(op, spans, q.size(0), k.size(0));
  at::Tensor out = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
  if (out.numel() == 0) return out;
  zero_rest(out, checked);

  at::Tensor queries = q, keys = k, values = v;
  args.q = heads_of(queries);
  args.k = heads_of(keys);
  args.v = heads_of(values);
  args.spans = checked.data();
  args.span_count = static_cast<int64_t>(checked.size());
  args.out = out.mutable_data_ptr();
  args.h = q.size(1);
  args.g = k.size(1);
  args.d = q.size(2);
  args.e = v.size(2);
  args.causal = causal;
  const double root = std::sqrt(static_cast<double>(std::max<int64_t>(args.d, 1)));
  args.scale = static_cast<float>(scale.value_or(1 / root));
  attention(args, at::get_num_threads());
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
  m.def("softmax_native(Tensor x, Tensor? mask=None, float scale=1.0) -> Tensor", tags);
  m.def("softmax_gradient(Tensor grad, Tensor p, float scale) -> Tensor", tags);
  m.def(
      "logprob_gradients(Tensor z, Tensor ids, Tensor? anchors, Tensor chosen, Tensor entropy, "
      "Tensor? of_logprob, Tensor? of_entropy, float scale, float? softcap, float temperature, "
      "ScalarType out_dtype, bool sums) -> (Tensor, Tensor)",
      tags);
  m.def("rotary_native(Tensor x, Tensor cos, Tensor sin, bool interleaved=False) -> Tensor", tags);
  m.def("embedding_native(Tensor ids, Tensor w) -> Tensor", tags);
  m.def(
      "attention_native(Tensor q, Tensor k, Tensor v, Tensor spans, bool causal=True, "
      "float? scale=None) -> Tensor",
      tags);
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
  m.impl("softmax_native", TORCH_FN(softmax_native));
  m.impl("softmax_gradient", TORCH_FN(softmax_gradient));
  m.impl("logprob_gradients", TORCH_FN(logprob_gradients));
  m.impl("rotary_native", TORCH_FN(rotary_native));
  m.impl("embedding_native", TORCH_FN(embedding_native));
  m.impl("attention_native", TORCH_FN(attention_native));
}

}  // namespace
}  // namespace accel_cpu
