// The torch side of logprob.
#pragma once

#include <algorithm>
#include <tuple>

#include "binding_products.h"

namespace accel_cpu {
namespace {

// Of the logits of hidden rows no more than this is held at once, in fp32.
constexpr int64_t kLogitBytes = 16 << 20;

// Rows enough for kLogitBytes at a time: their logits, bit for bit those of linear with out_dtype
// fp32, then what `args` asks of them.
void logprob_of_hidden(LinearArgs product, LogprobArgs args, const at::TensorOptions& options,
                       int threads) {
  const int64_t m = args.m;
  args.v = product.n;
  if (m == 0) return;
  const int64_t rows = std::min(m, std::max<int64_t>(kLogitBytes / (4 * args.v), 1));
  const at::Tensor z = uninitialized({rows, args.v}, options);
  product.out = z.mutable_data_ptr();
  product.out_stride = args.v;
  args.z = {z.const_data_ptr(), args.v};
  for (int64_t done = 0; done < m; done += rows) {
    product.m = args.m = std::min(rows, m - done);
    linear(product, threads);
    logprob(args, threads);
    product.x = from_row(product.x, rows, product.dtype);
    args.ids += rows;
    args.logprob += rows;
    args.entropy += rows;
  }
}

void check_ids(const char* op, const at::Tensor& ids, int64_t v) {
  const int64_t* all = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.numel(); ++i) {
    TORCH_CHECK_INDEX(0 <= all[i] && all[i] < v, op, ": ids holds ", all[i],
                      ", which is no logit's: V is ", v);
  }
}

std::tuple<at::Tensor, at::Tensor> logprob_native(at::Tensor x, const at::Tensor& ids,
                                                  const OptionalTensor& w, const OptionalTensor& b,
                                                  double scale, std::optional<double> softcap,
                                                  double temperature) {
  const char* op = "logprob_native";
  check_x(op, x);
  const at::IntArrayRef shape = x.sizes().slice(0, x.dim() - 1);
  TORCH_CHECK(ids.scalar_type() == at::kLong && ids.sizes() == shape, op, ": ids is ",
              ids.scalar_type(), " of shape ", ids.sizes(), "; beside x of shape ", x.sizes(),
              " it must be Long of shape ", shape);
  TORCH_CHECK(w || !b, op, ": b is given without w; x is the logits then, and b must be None");
  TORCH_CHECK(!softcap || *softcap > 0, op, ": softcap is ", *softcap, "; it must be more than 0");

  const at::TensorOptions options = x.options().dtype(at::kFloat);
  const at::Tensor chosen = uninitialized(shape, options), entropy = uninitialized(shape, options);
  const at::Tensor rows_ids = ids.contiguous();
  LogprobArgs args;
  args.ids = rows_ids.const_data_ptr<int64_t>();
  args.logprob = chosen.mutable_data_ptr<float>();
  args.entropy = entropy.mutable_data_ptr<float>();
  args.m = ids.numel();
  args.scale = static_cast<float>(scale);
  args.softcap = static_cast<float>(softcap.value_or(0));
  args.temperature = static_cast<float>(temperature);
  if (w) {
    Projection head{"w", *w, "b", b};
    const LinearArgs product = product_of(op, x, head);
    check_ids(op, rows_ids, product.n);
    logprob_of_hidden(product, args, options, at::get_num_threads());
  } else {
    args.v = x.size(-1);
    args.dtype = dtype_of(op, "x", x.scalar_type());
    args.z = matrix_of(x);
    check_ids(op, rows_ids, args.v);
    logprob(args, at::get_num_threads());
  }
  return {chosen, entropy};
}

}  // namespace
}  // namespace accel_cpu
