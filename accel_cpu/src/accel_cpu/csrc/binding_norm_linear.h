// The torch side of norm_linear: the rows of one op, then the product of the other.
#pragma once

#include "binding_products.h"
#include "binding_rows.h"

namespace accel_cpu {
namespace {

OptionalTensor widened(const OptionalTensor& t) {
  return t ? OptionalTensor(t->to(at::kFloat)) : std::nullopt;
}

// The normalised rows are rounded to the dtype of x, so that the result has the bits of the norm
// and of linear one after the other; but not below an fp32 result.
at::Tensor norm_linear_native(at::Tensor x, const at::Tensor& w, OptionalTensor norm_w,
                              OptionalTensor norm_b, const OptionalTensor& b,
                              std::string_view kind, double eps,
                              std::optional<std::string_view> act,
                              std::optional<at::ScalarType> out_dtype) {
  const char* op = "norm_linear_native";
  const bool layer = is_layer(op, kind);
  TORCH_CHECK(layer || !norm_b, op, ": kind 'rms' has no norm_b");
  const at::ScalarType out_type = out_dtype.value_or(x.scalar_type());
  Projection main{"w", w, "b", b};
  LinearArgs args = product_of(op, x, main);
  args.act = activation_of(op, act);
  args.wide_x = out_type == at::kFloat;

  at::Tensor rows = x;
  if (args.wide_x) {
    rows = x.to(at::kFloat);
    norm_w = widened(norm_w);
    norm_b = widened(norm_b);
  }
  at::Tensor normed = std::get<0>(norm_of(op, layer, rows, std::nullopt, norm_w, norm_b, eps));
  args.x = matrix_of(normed);
  return run(op, args, x, out_type);
}

}  // namespace
}  // namespace accel_cpu
