// The torch side of grouped_linear: a product for each expert.
#pragma once

#include <algorithm>
#include <vector>

#include "binding_products.h"

namespace accel_cpu {
namespace {

struct Rows {
  int64_t start, size;
};

// Each expert's of m rows.
std::vector<Rows> rows_of_experts(const char* op, const at::Tensor& ends, int64_t experts,
                                  int64_t m) {
  TORCH_CHECK(ends.scalar_type() == at::kLong && ends.sizes() == at::IntArrayRef{experts}, op,
              ": ends is ", ends.scalar_type(), " of shape ", ends.sizes(),
              "; it must be Long of shape [", experts, "]");
  const at::Tensor all = ends.contiguous();
  const int64_t* end = all.const_data_ptr<int64_t>();
  std::vector<Rows> rows;
  for (int64_t e = 0, start = 0; e < experts; start = end[e++]) {
    TORCH_CHECK_INDEX(start <= end[e] && end[e] <= m,
                      "grouped_linear: ends must be in order, from 0 to at most the ", m,
                      " rows there are; found ", end[e], " for expert ", e, " after ", start);
    rows.push_back({start, end[e] - start});
  }
  return rows;
}

// The first expert's [n, k] of w, [E, n, k], as it lies; all of them copied where they lie neither
// by rows nor by columns.
Matrix first_of_experts(at::Tensor& w) {
  if (w.numel() == 0) return {w.const_data_ptr(), 0};
  at::Tensor first = w.select(0, 0);
  const Matrix found = as_it_lies(first);
  if (found.data == w.const_data_ptr()) return found;
  w = w.contiguous();
  return {w.const_data_ptr(), w.stride(1)};
}

const void* at_element(const void* data, int64_t i, int64_t size) {
  return data ? static_cast<const char*>(data) + i * size : nullptr;
}

at::Tensor grouped_linear_native(at::Tensor x, at::Tensor w, const at::Tensor& ends,
                                 OptionalTensor b, std::optional<std::string_view> act,
                                 std::optional<at::ScalarType> out_dtype) {
  const char* op = "grouped_linear_native";
  TORCH_CHECK(x.dim() == 2 && w.dim() == 3, op, ": x must be [M, K] and w [E, N, K], but have the ",
              "shapes ", x.sizes(), " and ", w.sizes());
  const int64_t m = x.size(0), experts = w.size(0), n = w.size(1), element = x.element_size();
  check_operand(op, "w", w, x, {experts, n, x.size(1)});
  if (b) check_operand(op, "b", *b, x, {experts, n});
  const std::vector<Rows> rows = rows_of_experts(op, ends, experts, m);
  const at::ScalarType type = out_dtype.value_or(x.scalar_type());
  const at::Tensor out = uninitialized({m, n}, x.options().dtype(type));

  LinearArgs args;
  args.dtype = dtype_of(op, "x", x.scalar_type());
  args.out_dtype = dtype_of(op, "the result", out.scalar_type());
  args.act = activation_of(op, act);
  args.x = as_it_lies(x);
  args.w = first_of_experts(w);
  args.bias = vector_of(b);
  args.n = args.out_stride = n;
  args.k = x.size(1);
  char* results = static_cast<char*>(out.mutable_data_ptr());
  const int64_t row_bytes = n * out.element_size();
  std::vector<LinearArgs> products(experts, args);
  for (int64_t e = 0; e < experts; ++e) {
    products[e].m = rows[e].size;
    products[e].x = from_row(args.x, rows[e].start, args.dtype);
    products[e].w.data = at_element(args.w.data, e * w.stride(0), element);
    products[e].bias = at_element(args.bias, e * n, element);
    products[e].out = results + rows[e].start * row_bytes;
  }
  const int64_t end = experts ? rows.back().start + rows.back().size : 0;
  std::fill(results + end * row_bytes, results + m * row_bytes, '\0');
  linear_of_each(products.data(), experts, at::get_num_threads());
  return out;
}

// Of w, [E, N, K]: each expert's rows of grad, [M, N], transposed, times those of x, [M, K].
at::Tensor grouped_weight_gradient(at::Tensor grad, at::Tensor x, const at::Tensor& ends) {
  const char* op = "grouped_weight_gradient";
  TORCH_CHECK(x.dim() == 2 && grad.dim() == 2, op, ": grad must be [M, N] and x [M, K], but have ",
              "the shapes ", grad.sizes(), " and ", x.sizes());
  check_operand(op, "grad", grad, x, {x.size(0), grad.size(1)});
  const std::vector<Rows> rows = rows_of_experts(op, ends, ends.numel(), x.size(0));
  const int64_t experts = ends.numel(), n = grad.size(1), k = x.size(1);
  const at::Tensor out = uninitialized({experts, n, k}, x.options());

  LinearArgs args;
  args.dtype = args.out_dtype = dtype_of(op, "x", x.scalar_type());
  args.m = n;
  args.n = args.out_stride = k;
  const Matrix of_grad = matrix_of(grad), of_x = matrix_of(x);
  std::vector<LinearArgs> products(experts, args);
  for (int64_t e = 0; e < experts; ++e) {
    products[e].k = rows[e].size;
    products[e].x = from_row(of_grad, rows[e].start, args.dtype);
    products[e].w = from_row(of_x, rows[e].start, args.dtype);
    products[e].x.by_columns = products[e].w.by_columns = true;
    products[e].out = static_cast<char*>(out.mutable_data_ptr()) + e * n * k * x.element_size();
  }
  linear_of_each(products.data(), experts, at::get_num_threads());
  return out;
}

}  // namespace
}  // namespace accel_cpu
