// Products as torch has them: a weight, its bias and x turned into plain arguments.
#pragma once

#include "binding.h"

namespace accel_cpu {
namespace {

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

// Reads [n, k] as it lies where that is by rows or by columns, else copies it.
Matrix as_it_lies(at::Tensor& w) {
  const bool by_columns = !row_stride(w) && (w.stride(0) == 1 || w.size(0) == 1);
  if (by_columns) return {w.const_data_ptr(), w.stride(1), true};
  return matrix_of(w);
}

// The product x w^T + b as arguments, but for where it goes. `x` and `p` keep alive what those
// point to.
LinearArgs product_of(const char* op, at::Tensor& x, Projection& p) {
  check_x(op, x);
  TORCH_CHECK(p.w.dim() == 2, op, ": ", p.w_name, " must be [N, K], but has shape ", p.w.sizes());
  check_projection(op, p, x, p.w.size(0));
  LinearArgs args;
  args.dtype = dtype_of(op, "x", x.scalar_type());
  args.m = c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
  args.n = p.w.size(0);
  args.k = x.size(-1);
  args.w = as_it_lies(p.w);
  args.x = x.dim() == 2 ? as_it_lies(x) : matrix_of(x);
  args.bias = vector_of(p.b);
  return args;
}

at::DimVector result_shape(const LinearArgs& args, const at::Tensor& x) {
  at::DimVector shape(x.sizes());
  shape.back() = args.n;
  return shape;
}

// `out` has the shape of the result, and rows of unit stride.
void run_into(const char* op, LinearArgs args, const at::Tensor& out) {
  args.out_dtype = dtype_of(op, "the result", out.scalar_type());
  args.out = out.mutable_data_ptr();
  args.out_stride = *row_stride(out);
  // Asking torch also makes its thread count OpenMP's on a thread that has not used torch before.
  linear(args, at::get_num_threads());
}

at::Tensor run(const char* op, const LinearArgs& args, const at::Tensor& x,
               at::ScalarType out_type) {
  const at::Tensor out = uninitialized(result_shape(args, x), x.options().dtype(out_type));
  run_into(op, args, out);
  return out;
}

// The rows of x from one on.
Matrix from_row(Matrix x, int64_t row, DType dtype) {
  const int64_t bytes = (x.by_columns ? 1 : x.stride) * (dtype == DType::f32 ? 4 : 2);
  x.data = static_cast<const char*>(x.data) + row * bytes;
  return x;
}

// As it lies, by rows. `bytes` and `scales` keep alive what it points to.
QuantizedMatrix quantized_of(const char* op, at::Tensor& bytes, at::Tensor& scales,
                                    int64_t k, int64_t bits) {
  TORCH_CHECK(bits == 8 || bits == 4, op, ": bits is ", bits, "; possible are 8 and 4");
  const at::ScalarType type = bits == 8 ? at::kChar : at::kByte;
  TORCH_CHECK(bytes.scalar_type() == type, op, ": w of ", bits, " bits must be ", type,
              "; found ", bytes.scalar_type());
  TORCH_CHECK(bytes.dim() == 2 && bytes.size(1) * 8 == k * bits, op, ": w of ", bits,
              " bits has shape ", bytes.sizes(), "; beside rows of ", k, " it must be [N, ",
              k * bits / 8, "]");
  TORCH_CHECK(scales.scalar_type() == at::kFloat && scales.dim() == 2 &&
                  scales.size(0) == bytes.size(0) && scales.size(1) > 0 && k % scales.size(1) == 0,
              op, ": scales are ", scales.scalar_type(), " of shape ", scales.sizes(),
              "; they must be Float of shape [", bytes.size(0), ", G], where G divides ", k);
  const int64_t groups = scales.size(1);
  return {matrix_of(bytes), static_cast<int>(bits), matrix_of(scales), groups, k / groups};
}

}  // namespace
}  // namespace accel_cpu
