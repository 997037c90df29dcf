// The torch side of linear and of the products like it.
#pragma once

#include <string_view>

#include "binding_products.h"

namespace accel_cpu {
namespace {

at::Tensor linear_native(at::Tensor x, const at::Tensor& w, const OptionalTensor& b,
                         std::optional<std::string_view> act,
                         std::optional<at::ScalarType> out_dtype) {
  const char* op = "linear_native";
  Projection main{"w", w, "b", b};
  LinearArgs args = product_of(op, x, main);
  args.act = activation_of(op, act);
  return run(op, args, x, out_dtype.value_or(x.scalar_type()));
}

// In fp32, of the product's shape: what its gradient is made of.
at::Tensor kept_of(const LinearArgs& args, const at::Tensor& x) {
  return uninitialized(result_shape(args, x), x.options().dtype(at::kFloat));
}

// The same result, and in fp32 what the activation is of.
std::tuple<at::Tensor, at::Tensor> linear_recorded(at::Tensor x, const at::Tensor& w,
                                                   const OptionalTensor& b, std::string_view act,
                                                   std::optional<at::ScalarType> out_dtype) {
  const char* op = "linear_recorded";
  Projection main{"w", w, "b", b};
  LinearArgs args = product_of(op, x, main);
  args.act = activation_of(op, act);
  const at::Tensor before = kept_of(args, x);
  args.before_act = before.mutable_data_ptr<float>();
  return {run(op, args, x, out_dtype.value_or(x.scalar_type())), before};
}

// act(x w_gate^T + b_gate) * (x w_up^T + b_up), but for where it goes.
LinearArgs gated_product_of(const char* op, at::Tensor& x, Projection& gate, Projection& up,
                            std::string_view act) {
  LinearArgs args = product_of(op, x, gate);
  check_projection(op, up, x, args.n);
  args.act = activation_of(op, act);
  args.gated = true;
  args.w_up = as_it_lies(up.w);
  args.bias_up = vector_of(up.b);
  return args;
}

at::Tensor gated_linear_native(at::Tensor x, const at::Tensor& w_gate, const at::Tensor& w_up,
                               const OptionalTensor& b_gate, const OptionalTensor& b_up,
                               std::string_view act, std::optional<at::ScalarType> out_dtype) {
  const char* op = "gated_linear_native";
  Projection gate{"w_gate", w_gate, "b_gate", b_gate}, up{"w_up", w_up, "b_up", b_up};
  const LinearArgs args = gated_product_of(op, x, gate, up, act);
  return run(op, args, x, out_dtype.value_or(x.scalar_type()));
}

// The same result, and in fp32 what its gradient is made of: the gate before its activation, and
// what it is multiplied by.
std::tuple<at::Tensor, at::Tensor, at::Tensor> gated_linear_recorded(
    at::Tensor x, const at::Tensor& w_gate, const at::Tensor& w_up, const OptionalTensor& b_gate,
    const OptionalTensor& b_up, std::string_view act, std::optional<at::ScalarType> out_dtype) {
  const char* op = "gated_linear_recorded";
  Projection gate{"w_gate", w_gate, "b_gate", b_gate}, up{"w_up", w_up, "b_up", b_up};
  LinearArgs args = gated_product_of(op, x, gate, up, act);
  const at::Tensor kept_gate = kept_of(args, x), kept_up = kept_of(args, x);
  args.before_act = kept_gate.mutable_data_ptr<float>();
  args.up = kept_up.mutable_data_ptr<float>();
  return {run(op, args, x, out_dtype.value_or(x.scalar_type())), kept_gate, kept_up};
}

at::Tensor lora_linear_native(at::Tensor x, const at::Tensor& w, const at::Tensor& lora_a,
                              at::Tensor lora_b, const OptionalTensor& b, double scale,
                              std::optional<at::ScalarType> out_dtype) {
  const char* op = "lora_linear_native";
  Projection main{"w", w, "b", b}, inner{"lora_a", lora_a, "", std::nullopt};
  LinearArgs args = product_of(op, x, main);
  const LinearArgs down = product_of(op, x, inner);
  check_operand(op, "lora_b", lora_b, x, {args.n, down.n});
  const at::Tensor u = run(op, down, x, at::kFloat);
  args.rank = down.n;
  args.u = {u.const_data_ptr(), args.rank};
  args.lora_b = as_it_lies(lora_b);
  args.scale = static_cast<float>(scale);
  return run(op, args, x, out_dtype.value_or(x.scalar_type()));
}

at::Tensor quantized_linear_native(at::Tensor x, at::Tensor w, at::Tensor scales, OptionalTensor b,
                                   int64_t bits, std::optional<std::string_view> act,
                                   std::optional<at::ScalarType> out_dtype) {
  const char* op = "quantized_linear_native";
  check_x(op, x);
  LinearArgs args;
  args.dtype = dtype_of(op, "x", x.scalar_type());
  args.k = x.size(-1);
  args.quantized = quantized_of(op, w, scales, args.k, bits);
  args.m = c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
  args.n = w.size(0);
  if (b) check_operand(op, "b", *b, x, {args.n});
  args.x = x.dim() == 2 ? as_it_lies(x) : matrix_of(x);
  args.bias = vector_of(b);
  args.act = activation_of(op, act);
  return run(op, args, x, out_dtype.value_or(x.scalar_type()));
}

// A product and the partial sum it is added to. `x`, `p` and `partial` keep alive what those point
// to.
LinearArgs sum_of(const char* op, at::Tensor& x, Projection& p, OptionalTensor& partial) {
  LinearArgs args = product_of(op, x, p);
  if (!partial) return args;
  TORCH_CHECK(partial->sizes() == at::IntArrayRef(result_shape(args, x)), op,
              ": partial has shape ", partial->sizes(), "; it must be the result's, ",
              at::IntArrayRef(result_shape(args, x)));
  args.partial_dtype = dtype_of(op, "partial", partial->scalar_type());
  args.partial = matrix_of(*partial);
  return args;
}

at::Tensor tiled_linear_native(at::Tensor x, const at::Tensor& w, const OptionalTensor& b,
                               OptionalTensor partial, std::optional<at::ScalarType> out_dtype) {
  const char* op = "tiled_linear_native";
  Projection main{"w", w, "b", b};
  return run(op, sum_of(op, x, main, partial), x, out_dtype.value_or(x.scalar_type()));
}

void tiled_linear_native_into(at::Tensor x, const at::Tensor& w, const OptionalTensor& b,
                              OptionalTensor partial, const at::Tensor& out) {
  const char* op = "tiled_linear_native_into";
  Projection main{"w", w, "b", b};
  const LinearArgs args = sum_of(op, x, main, partial);
  TORCH_CHECK(out.sizes() == at::IntArrayRef(result_shape(args, x)), op, ": out has shape ",
              out.sizes(), "; it must be the result's, ", at::IntArrayRef(result_shape(args, x)));
  if (row_stride(out)) return run_into(op, args, out);
  out.copy_(run(op, args, x, out.scalar_type()));
}

}  // namespace
}  // namespace accel_cpu
