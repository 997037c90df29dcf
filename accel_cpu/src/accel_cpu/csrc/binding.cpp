// The torch side: checks metadata, turns tensors into plain arguments (kernels.h) and registers the
// ops. Schemas carry no fake kernel and no gradient: those come from the contracts, in Python.
#include <ATen/Parallel.h>
#include <ATen/core/DimVector.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels.h"

namespace accel_cpu {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

DType dtype_of(const char* op, const char* name, at::ScalarType type) {
  switch (type) {
    case at::kFloat: return DType::f32;
    case at::kBFloat16: return DType::bf16;
    case at::kHalf: return DType::f16;
    default:
      TORCH_CHECK(false, op, ": ", name, " is ", type, "; possible are Float, BFloat16 and Half");
  }
}

Activation activation_of(const char* op, std::optional<std::string_view> act) {
  if (!act) return Activation::none;
  if (*act == "relu") return Activation::relu;
  if (*act == "gelu") return Activation::gelu;
  if (*act == "gelu_tanh") return Activation::gelu_tanh;
  if (*act == "silu") return Activation::silu;
  TORCH_CHECK(false, op, ": act is '", *act,
              "'; possible are 'relu', 'gelu', 'gelu_tanh' and 'silu'");
}

// Elements from one row to the next where the leading dimensions collapse into rows of unit stride.
std::optional<int64_t> row_stride(const at::Tensor& x) {
  if (x.numel() == 0) return 0;
  if (x.size(-1) > 1 && x.stride(-1) != 1) return std::nullopt;
  int64_t stride = 0;
  int64_t rows = 1;
  for (int64_t d = x.dim() - 2; d >= 0; --d) {
    if (x.size(d) == 1) continue;
    if (rows == 1) stride = x.stride(d);
    if (x.stride(d) != stride * rows) return std::nullopt;
    rows *= x.size(d);
  }
  return stride;
}

// Reads x as it lies where it can be read as rows, else copies it; `x` keeps the copy alive.
Matrix matrix_of(at::Tensor& x) {
  if (!row_stride(x)) x = x.contiguous();
  return {x.const_data_ptr(), *row_stride(x)};
}

const void* vector_of(OptionalTensor& b) {
  if (!b) return nullptr;
  b = b->contiguous();
  return b->const_data_ptr();
}

void check_x(const char* op, const at::Tensor& x) {
  TORCH_CHECK(x.dim() >= 1, op, ": x must be [..., K], but is a scalar");
}

void check_operand(const char* op, const char* name, const at::Tensor& t, const at::Tensor& x,
                   at::IntArrayRef shape) {
  TORCH_CHECK(t.sizes() == shape, op, ": ", name, " has shape ", t.sizes(), "; beside x of shape ",
              x.sizes(), " it must be ", shape);
  TORCH_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " is ", t.scalar_type(),
              "; it must have the dtype of x, ", x.scalar_type());
}

// A weight and its bias, under the names the schema gives them.
struct Projection {
  const char* w_name;
  at::Tensor w;
  const char* b_name;
  OptionalTensor b;
};

void check_projection(const char* op, const Projection& p, const at::Tensor& x, int64_t n) {
  check_operand(op, p.w_name, p.w, x, {n, x.size(-1)});
  if (p.b) check_operand(op, p.b_name, *p.b, x, {n});
}

at::Tensor run_linear(const char* op, at::Tensor x, Projection main, std::optional<Projection> up,
                      std::optional<std::string_view> act,
                      std::optional<at::ScalarType> out_dtype) {
  check_x(op, x);
  TORCH_CHECK(main.w.dim() == 2, op, ": ", main.w_name, " must be [N, K], but has shape ",
              main.w.sizes());
  const int64_t n = main.w.size(0);
  check_projection(op, main, x, n);
  if (up) check_projection(op, *up, x, n);
  const at::ScalarType out_type = out_dtype.value_or(x.scalar_type());

  LinearArgs args;
  args.dtype = dtype_of(op, "x", x.scalar_type());
  args.out_dtype = dtype_of(op, "out_dtype", out_type);
  args.act = activation_of(op, act);
  at::DimVector shape(x.sizes());
  shape.back() = n;
  at::Tensor out = at::empty(shape, x.options().dtype(out_type));
  if (out.numel() == 0) return out;

  args.m = out.numel() / n;
  args.n = n;
  args.k = x.size(-1);
  args.x = matrix_of(x);
  args.w = matrix_of(main.w);
  args.bias = vector_of(main.b);
  if (up) {
    args.gated = true;
    args.w_up = matrix_of(up->w);
    args.bias_up = vector_of(up->b);
  }
  args.out = out.mutable_data_ptr();
  // Asking torch also makes its thread count OpenMP's on a thread that has not used torch before.
  linear(args, at::get_num_threads());
  return out;
}

at::Tensor linear_native(const at::Tensor& x, const at::Tensor& w, const OptionalTensor& b,
                         std::optional<std::string_view> act,
                         std::optional<at::ScalarType> out_dtype) {
  return run_linear("linear_native", x, {"w", w, "b", b}, std::nullopt, act, out_dtype);
}

at::Tensor gated_linear_native(const at::Tensor& x, const at::Tensor& w_gate,
                               const at::Tensor& w_up, const OptionalTensor& b_gate,
                               const OptionalTensor& b_up, std::string_view act,
                               std::optional<at::ScalarType> out_dtype) {
  return run_linear("gated_linear_native", x, {"w_gate", w_gate, "b_gate", b_gate},
                    Projection{"w_up", w_up, "b_up", b_up}, act, out_dtype);
}

at::Tensor rms_norm_native(const at::Tensor& x, const OptionalTensor& w, double eps) {
  const char* op = "rms_norm_native";
  check_x(op, x);
  if (w) check_operand(op, "w", *w, x, {x.size(-1)});
  RmsNormArgs args;
  args.dtype = dtype_of(op, "x", x.scalar_type());
  args.eps = static_cast<float>(eps);
  at::Tensor out = at::empty(x.sizes(), x.options());
  if (out.numel() == 0) return out;

  at::Tensor rows = x;
  OptionalTensor weight = w;
  args.k = x.size(-1);
  args.m = x.numel() / args.k;
  args.x = matrix_of(rows);
  args.w = vector_of(weight);
  args.out = out.mutable_data_ptr();
  rms_norm(args, at::get_num_threads());
  return out;
}

std::string isa() { return kernels().isa; }

TORCH_LIBRARY_FRAGMENT(accel_cpu_kernels, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "linear_native(Tensor x, Tensor w, Tensor? b=None, str? act=None, "
      "ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def(
      "gated_linear_native(Tensor x, Tensor w_gate, Tensor w_up, Tensor? b_gate=None, "
      "Tensor? b_up=None, str act=\"silu\", ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def("rms_norm_native(Tensor x, Tensor? w=None, float eps=1e-06) -> Tensor", tags);
  m.def("isa() -> str", tags);
  m.impl("isa", c10::DispatchKey::CompositeExplicitAutograd, TORCH_FN(isa));
}

TORCH_LIBRARY_IMPL(accel_cpu_kernels, CPU, m) {
  m.impl("linear_native", TORCH_FN(linear_native));
  m.impl("gated_linear_native", TORCH_FN(gated_linear_native));
  m.impl("rms_norm_native", TORCH_FN(rms_norm_native));
}

}  // namespace
}  // namespace accel_cpu
