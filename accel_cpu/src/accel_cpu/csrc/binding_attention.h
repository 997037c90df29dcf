// The torch side of attention.
#pragma once

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

#include "binding_rows.h"

namespace accel_cpu {
namespace {

// Reads x, [..., heads, width], as it lies where its leading dimensions collapse into rows, else
// copies it; `x` keeps the copy alive.
Heads heads_of(at::Tensor& x) {
  if (!has_unit_stride(x) || !collapsed_stride(x, 2)) x = x.contiguous();
  return {x.const_data_ptr(), *collapsed_stride(x, 2), x.stride(-2)};
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

void check_scores(const char* op, const at::Tensor& q, const at::Tensor& spans,
                  const OptionalTensor& mask, const OptionalTensor& slopes,
                  std::optional<int64_t> window, std::optional<double> softcap) {
  const auto fits = [](int64_t size, int64_t whole) { return size == 1 || size == whole; };
  TORCH_CHECK(!mask || (mask->dim() == 4 && fits(mask->size(0), spans.size(0)) &&
                        fits(mask->size(1), q.size(1)) && mask->scalar_type() == q.scalar_type()),
              op, ": mask must be [B or 1, H or 1, queries or 1, keys] of B = ", spans.size(0),
              " spans and H = ", q.size(1), " heads, and of the dtype of q, ", q.scalar_type(),
              ", but has shape ", mask->sizes(), " and is ", mask->scalar_type());
  TORCH_CHECK(!slopes || (slopes->sizes() == q.sizes().slice(1, 1) &&
                          slopes->scalar_type() == at::kFloat), op,
              ": slopes must be [", q.size(1), "], one a head, and Float, but has shape ",
              slopes->sizes(), " and is ", slopes->scalar_type());
  TORCH_CHECK(!window || *window >= 1, op, ": window is ", *window, "; it must be at least 1");
  TORCH_CHECK(!softcap || *softcap > 0, op, ": softcap is ", *softcap, "; it must be above 0");
}

// The rows of `spans`, after a look at each: they must lie within M queries, N keys and the mask,
// and no two may hold the same query.
std::vector<Span> spans_of(const char* op, const at::Tensor& spans, int64_t m, int64_t n,
                           const OptionalTensor& mask) {
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
    const bool masked = !mask || (s.k_len <= mask->size(3) &&
                                  (mask->size(2) == 1 || s.q_len <= mask->size(2)));
    TORCH_CHECK_INDEX(masked, op, ": span ", i, " has ", s.q_len, " queries and ", s.k_len,
                      " keys; the mask of shape ", mask->sizes(), " has fewer");
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

// Keeps the mask it reads alive, which is copied unless its keys lie one after another.
ScoreMask mask_of(OptionalTensor& mask) {
  if (!mask) return {};
  if (!has_unit_stride(*mask)) mask = mask->contiguous();
  const auto stride = [&](int64_t d) { return mask->size(d) == 1 ? 0 : mask->stride(d); };
  return {mask->const_data_ptr(), stride(0), stride(1), stride(2)};
}

// The arguments of attention, checked, and as a kernel takes them.
struct Attention {
  at::Tensor q, k, v;
  OptionalTensor mask, slopes;
  std::vector<Span> spans;
  AttentionArgs args;  // which points to them

  Attention(const Attention&) = delete;
  Attention(const char* op, const at::Tensor& queries, const at::Tensor& keys,
            const at::Tensor& values, const at::Tensor& table, const OptionalTensor& added,
            const OptionalTensor& slope, const OptionalTensor& seed, bool causal,
            std::optional<double> scale, std::optional<int64_t> window,
            std::optional<double> softcap, double dropout)
      : q(queries), k(keys), v(values), mask(added), slopes(slope) {
    check_attention(op, q, k, v, table);
    check_scores(op, q, table, mask, slopes, window, softcap);
    args.dtype = dtype_of(op, "q", q.scalar_type());
    args.dropout = dropout_of(op, seed, dropout);
    spans = spans_of(op, table, q.size(0), k.size(0), mask);
    args.spans = spans.data();
    args.span_count = static_cast<int64_t>(spans.size());
    args.h = q.size(1);
    args.g = k.size(1);
    args.d = q.size(2);
    args.e = v.size(2);
    args.q = heads_of(q);
    args.k = heads_of(k);
    args.v = heads_of(v);
    const double root = std::sqrt(static_cast<double>(std::max<int64_t>(args.d, 1)));
    args.scale = static_cast<float>(scale.value_or(1 / root));
    args.softcap = static_cast<float>(softcap.value_or(0));
    args.mask = mask_of(mask);
    args.slopes = static_cast<const float*>(vector_of(slopes));
    args.causal = causal;
    args.window = std::min(window.value_or(kNoWindow), kNoWindow);
  }
};

// With `log_sums`, which is zeros, those of the rows too.
at::Tensor attended(Attention& of, const at::Tensor& log_sums) {
  at::Tensor out = uninitialized({of.q.size(0), of.args.h, of.args.e}, of.q.options());
  if (out.numel() == 0) return out;
  zero_rest(out, of.spans);
  of.args.out = out.mutable_data_ptr();
  of.args.log_sums = static_cast<float*>(data_of(log_sums));
  attention(of.args, at::get_num_threads());
  return out;
}

at::Tensor attention_native(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const at::Tensor& spans, const OptionalTensor& mask,
                            const OptionalTensor& slopes, const OptionalTensor& seed, bool causal,
                            std::optional<double> scale, std::optional<int64_t> window,
                            std::optional<double> softcap, double dropout) {
  Attention of("attention_native", q, k, v, spans, mask, slopes, seed, causal, scale, window,
               softcap, dropout);
  return attended(of, {});
}

// The result, and of each query and head the log of the sum of exp(score).
std::tuple<at::Tensor, at::Tensor> attention_recorded(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& spans,
    const OptionalTensor& mask, const OptionalTensor& slopes, const OptionalTensor& seed,
    bool causal, std::optional<double> scale, std::optional<int64_t> window,
    std::optional<double> softcap, double dropout) {
  Attention of("attention_recorded", q, k, v, spans, mask, slopes, seed, causal, scale, window,
               softcap, dropout);
  const at::Tensor log_sums = at::zeros({q.size(0), q.size(1)}, q.options().dtype(at::kFloat));
  return {attended(of, log_sums), log_sums};
}

Gradients attention_gradients(at::Tensor grad, at::Tensor out, const at::Tensor& log_sums,
                              std::array<bool, 3> needs, const at::Tensor& q, const at::Tensor& k,
                              const at::Tensor& v, const at::Tensor& spans,
                              const OptionalTensor& mask, const OptionalTensor& slopes,
                              const OptionalTensor& seed, bool causal, std::optional<double> scale,
                              std::optional<int64_t> window, std::optional<double> softcap,
                              double dropout) {
  const char* op = "attention_gradients";
  Attention of(op, q, k, v, spans, mask, slopes, seed, causal, scale, window, softcap, dropout);
  const at::IntArrayRef rows = q.sizes().slice(0, 2);
  check_operand(op, "grad", grad, q, {rows[0], rows[1], v.size(2)});
  check_operand(op, "out", out, q, grad.sizes());
  TORCH_CHECK(log_sums.sizes() == rows && log_sums.scalar_type() == at::kFloat, op,
              ": log_sums must be Float of shape ", rows, ", but is ", log_sums.scalar_type(),
              " of shape ", log_sums.sizes());
  const auto zeros = [](const at::Tensor& t, bool need) {
    return need ? at::zeros(t.sizes(), t.options().dtype(at::kFloat)) : at::Tensor();
  };
  const at::Tensor dq = zeros(q, needs[0]), dk = zeros(k, needs[1]), dv = zeros(v, needs[2]);
  if (grad.numel() > 0) {
    const at::Tensor sums = log_sums.contiguous();
    AttentionBackwardArgs args;
    args.of = of.args;
    args.grad = heads_of(grad);
    args.out = heads_of(out);
    args.log_sums = sums.const_data_ptr<float>();
    args.dq = static_cast<float*>(data_of(dq));
    args.dk = static_cast<float*>(data_of(dk));
    args.dv = static_cast<float*>(data_of(dv));
    attention_backward(args, at::get_num_threads());
  }
  const auto rounded = [&](const at::Tensor& t) {
    return t.defined() ? t.to(q.scalar_type()) : t;
  };
  return {rounded(dq), rounded(dk), rounded(dv)};
}

}  // namespace
}  // namespace accel_cpu
