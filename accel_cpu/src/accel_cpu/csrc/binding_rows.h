// The torch side of row_kernels.h.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>

#include "binding.h"

namespace accel_cpu {
namespace {

// What a gradient is not asked for is an undefined tensor, None in Python.
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

void check_like_x(const char* op, const char* name, const OptionalTensor& t, const at::Tensor& x) {
  if (t) check_operand(op, name, *t, x, x.sizes());
}

void check_vector(const char* op, const char* name, const OptionalTensor& t, const at::Tensor& x) {
  if (t) check_operand(op, name, *t, x, {x.size(-1)});
}

// The size and dtype of x, which must have elements.
template <class Args>
Args args_of(const char* op, const at::Tensor& x) {
  Args args;
  args.dtype = dtype_of(op, "x", x.scalar_type());
  args.k = x.size(-1);
  args.m = x.numel() / args.k;
  return args;
}

// As matrix_of; none where there is no tensor.
Matrix optional_matrix_of(OptionalTensor& t) { return t ? matrix_of(*t) : Matrix{}; }

at::Tensor like(const at::Tensor& x) { return uninitialized(x.sizes(), x.options()); }

// [k], zero where there are no rows to sum; undefined unless asked for.
at::Tensor sum_like(const at::Tensor& x, bool asked) {
  if (!asked) return {};
  at::Tensor sum = uninitialized({x.size(-1)}, x.options());
  return x.numel() == 0 ? sum.zero_() : sum;
}

void* data_of(const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; }

bool is_layer(const char* op, std::string_view kind) {
  TORCH_CHECK(kind == "layer" || kind == "rms", op, ": kind is '", kind,
              "'; possible are 'layer' and 'rms'");
  return kind == "layer";
}

// The norm of x, or of x + residual, and that total.
std::tuple<at::Tensor, at::Tensor> norm_of(const char* op, bool layer, at::Tensor x,
                                           OptionalTensor residual, OptionalTensor w,
                                           OptionalTensor b, double eps) {
  check_x(op, x);
  check_like_x(op, "residual", residual, x);
  check_vector(op, "w", w, x);
  check_vector(op, "b", b, x);
  at::Tensor out = like(x), total = residual ? like(x) : at::Tensor();
  if (out.numel() == 0) return {out, total};

  NormArgs args = args_of<NormArgs>(op, x);
  args.eps = static_cast<float>(eps);
  args.x = matrix_of(x);
  args.residual = optional_matrix_of(residual);
  args.w = vector_of(w);
  args.b = vector_of(b);
  args.total = data_of(total);
  args.out = out.mutable_data_ptr();
  (layer ? layer_norm : rms_norm)(args, at::get_num_threads());
  return {out, total};
}

at::Tensor rms_norm_native(const at::Tensor& x, const OptionalTensor& w, double eps) {
  return std::get<0>(norm_of("rms_norm_native", false, x, std::nullopt, w, std::nullopt, eps));
}

at::Tensor layer_norm_native(const at::Tensor& x, const OptionalTensor& w, const OptionalTensor& b,
                             double eps) {
  return std::get<0>(norm_of("layer_norm_native", true, x, std::nullopt, w, b, eps));
}

std::tuple<at::Tensor, at::Tensor> add_norm_native(const at::Tensor& x, const at::Tensor& residual,
                                                   const OptionalTensor& w,
                                                   const OptionalTensor& b, std::string_view kind,
                                                   double eps) {
  const char* op = "add_norm_native";
  const bool layer = is_layer(op, kind);
  TORCH_CHECK(layer || !b, op, ": kind 'rms' has no b");
  return norm_of(op, layer, x, residual, w, b, eps);
}

// Of a norm of x, or of x + residual, on which total_grad is added to dx.
Gradients norm_gradients(at::Tensor grad, at::Tensor x, OptionalTensor residual,
                        OptionalTensor total_grad, OptionalTensor w, std::string_view kind,
                        double eps, std::array<bool, 3> needs) {
  const char* op = "norm_gradients";
  const bool layer = is_layer(op, kind);
  check_x(op, x);
  check_operand(op, "grad", grad, x, x.sizes());
  check_like_x(op, "residual", residual, x);
  check_like_x(op, "total_grad", total_grad, x);
  check_vector(op, "w", w, x);
  at::Tensor dx = needs[0] || residual ? like(x) : at::Tensor();
  at::Tensor dw = sum_like(x, needs[1]), db = sum_like(x, needs[2]);
  if (x.numel() == 0) return {dx, dw, db};

  NormBackwardArgs args = args_of<NormBackwardArgs>(op, x);
  args.eps = static_cast<float>(eps);
  args.grad = matrix_of(grad);
  args.x = matrix_of(x);
  args.residual = optional_matrix_of(residual);
  args.total_grad = optional_matrix_of(total_grad);
  args.w = vector_of(w);
  args.dx = data_of(dx);
  args.dw = data_of(dw);
  args.db = data_of(db);
  (layer ? layer_norm_backward : rms_norm_backward)(args, at::get_num_threads());
  return {dx, dw, db};
}

at::Tensor bias_act_native(at::Tensor x, OptionalTensor b, std::optional<std::string_view> act) {
  const char* op = "bias_act_native";
  check_x(op, x);
  check_vector(op, "b", b, x);
  const Activation activation = activation_of(op, act);
  at::Tensor out = like(x);
  if (out.numel() == 0) return out;

  BiasActArgs args = args_of<BiasActArgs>(op, x);
  args.act = activation;
  args.x = matrix_of(x);
  args.b = vector_of(b);
  args.out = out.mutable_data_ptr();
  bias_act(args, at::get_num_threads());
  return out;
}

std::tuple<at::Tensor, at::Tensor> bias_act_gradients(at::Tensor grad, at::Tensor x,
                                                      OptionalTensor b,
                                                      std::optional<std::string_view> act,
                                                      std::array<bool, 2> needs) {
  const char* op = "bias_act_gradients";
  check_x(op, x);
  check_operand(op, "grad", grad, x, x.sizes());
  check_vector(op, "b", b, x);
  const Activation activation = activation_of(op, act);
  at::Tensor dx = needs[0] ? like(x) : at::Tensor(), db = sum_like(x, needs[1]);
  if (x.numel() == 0) return {dx, db};

  BiasActBackwardArgs args = args_of<BiasActBackwardArgs>(op, x);
  args.act = activation;
  args.grad = matrix_of(grad);
  args.x = matrix_of(x);
  args.b = vector_of(b);
  args.dx = data_of(dx);
  args.db = data_of(db);
  bias_act_backward(args, at::get_num_threads());
  return {dx, db};
}

// Of act(gate) * up, where gate and up are fp32, contiguous and of grad's shape.
std::tuple<at::Tensor, at::Tensor> gate_gradients(at::Tensor grad, const at::Tensor& gate,
                                                  const at::Tensor& up, std::string_view act,
                                                  at::ScalarType dtype) {
  const char* op = "gate_gradients";
  check_x(op, grad);
  for (const at::Tensor& kept : {gate, up}) {
    TORCH_CHECK(kept.sizes() == grad.sizes() && kept.scalar_type() == at::kFloat &&
                    kept.is_contiguous(),
                op, ": gate and up must be contiguous, Float and of shape ", grad.sizes(),
                "; found ", kept.scalar_type(), " of shape ", kept.sizes());
  }
  const auto made = [&] { return uninitialized(grad.sizes(), grad.options().dtype(dtype)); };
  const at::Tensor d_gate = made(), d_up = made();
  if (grad.numel() == 0) return {d_gate, d_up};

  GateBackwardArgs args = args_of<GateBackwardArgs>(op, grad);
  args.act = activation_of(op, act);
  args.grad = matrix_of(grad);
  args.gate = gate.const_data_ptr<float>();
  args.up = up.const_data_ptr<float>();
  args.out_dtype = dtype_of(op, "the result", dtype);
  args.d_gate = d_gate.mutable_data_ptr();
  args.d_up = d_up.mutable_data_ptr();
  gate_backward(args, at::get_num_threads());
  return {d_gate, d_up};
}

// What dropout with probability p drops.
Dropout dropout_of(const char* op, const OptionalTensor& seed, double p) {
  TORCH_CHECK(0 <= p && p <= 1, op, ": dropout has p = ", p, "; it must be between 0 and 1");
  if (p == 0) return {};
  TORCH_CHECK(seed && seed->scalar_type() == at::kLong && seed->dim() == 0, op, ": dropout of p = ",
              p, " needs a seed, a Long tensor of shape []");
  const double least = std::nearbyint(p * 4294967296.0), most = 4294967295.0;
  const float scale = least > most ? 0.0f : static_cast<float>(1 / (1 - p));  // or none survives
  return {true, *seed->const_data_ptr<int64_t>(), static_cast<uint32_t>(std::min(least, most)),
          scale};
}

// The same of rows like those of x. `rows` keeps its numbers alive.
DropoutAddArgs dropping(const char* op, const at::Tensor& x, const OptionalTensor& seed,
                        OptionalTensor& rows, double p) {
  DropoutAddArgs args = args_of<DropoutAddArgs>(op, x);
  args.dropout = dropout_of(op, seed, p);
  if (args.dropout.drops && rows) {
    const at::IntArrayRef shape = x.sizes().slice(0, x.dim() - 1);
    TORCH_CHECK(rows->scalar_type() == at::kLong && rows->sizes() == shape, op, ": rows is ",
                rows->scalar_type(), " of shape ", rows->sizes(), "; beside x of shape ",
                x.sizes(), " it must be Long of shape ", shape);
    rows = rows->contiguous();
    args.rows = rows->const_data_ptr<int64_t>();
  }
  return args;
}

at::Tensor dropout_add_native(at::Tensor x, OptionalTensor residual, OptionalTensor b,
                              const OptionalTensor& seed, OptionalTensor rows, double p) {
  const char* op = "dropout_add_native";
  check_x(op, x);
  check_like_x(op, "residual", residual, x);
  check_vector(op, "b", b, x);
  at::Tensor out = like(x);
  if (out.numel() == 0) return out;

  DropoutAddArgs args = dropping(op, x, seed, rows, p);
  args.x = matrix_of(x);
  args.residual = optional_matrix_of(residual);
  args.b = vector_of(b);
  args.out = out.mutable_data_ptr();
  dropout_add(args, at::get_num_threads());
  return out;
}

// The gradients of x and b: what survives of grad, and its sum over the rows.
std::tuple<at::Tensor, at::Tensor> dropout_add_gradients(at::Tensor grad,
                                                         const OptionalTensor& seed,
                                                         OptionalTensor rows, double p,
                                                         std::array<bool, 2> needs) {
  const char* op = "dropout_add_gradients";
  check_x(op, grad);
  at::Tensor dx = needs[0] ? like(grad) : at::Tensor(), db = sum_like(grad, needs[1]);
  if (grad.numel() == 0) return {dx, db};

  DropoutAddArgs args = dropping(op, grad, seed, rows, p);
  args.x = matrix_of(grad);
  args.out = data_of(dx);
  args.sums = data_of(db);
  dropout_add(args, at::get_num_threads());
  return {dx, db};
}

}  // namespace
}  // namespace accel_cpu
