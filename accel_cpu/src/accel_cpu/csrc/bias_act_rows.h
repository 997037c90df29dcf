// Rows of bias_act and their gradients on one thread, some columns at a time in fp32 on the stack,
// written over the vectors of the vec_*.h included before it.
#pragma once

#include "elementwise.h"
#include "row_kernels.h"

namespace accel_cpu {
namespace {

constexpr int64_t kColumns = 512;  // at a time

// Calls f(m, i, size) for parts of at most kColumns columns of rows [m0, m1).
template <class F>
void for_columns(int64_t m0, int64_t m1, int64_t k, F f) {
  for (int64_t m = m0; m < m1; ++m) {
    for (int64_t i = 0; i < k; i += kColumns) f(m, i, k - i < kColumns ? k - i : kColumns);
  }
}

// z = x + b in fp32, of elements [i, i + size) of row m.
template <class T, class Args>
void biased(const Args& args, int64_t m, int64_t i, int64_t size, float* z) {
  widen_to(z, static_cast<const T*>(args.x.data) + m * args.x.stride + i, size);
  if (args.b) add_in_place(z, static_cast<const T*>(args.b) + i, size);
}

template <class F>
void multiply_by_slope(float* grad, const float* z, int64_t size) {
  for_each_vector(size, [=](int64_t i, auto... n) {
    store(grad + i, mul(load(grad + i, n...), F::slope(load(z + i, n...))), n...);
  });
}

void multiply_by_slope(Activation act, float* grad, const float* z, int64_t size) {
  switch (act) {
    case Activation::none: return;
    case Activation::relu: return multiply_by_slope<Relu>(grad, z, size);
    case Activation::gelu: return multiply_by_slope<Gelu>(grad, z, size);
    case Activation::gelu_tanh: return multiply_by_slope<GeluTanh>(grad, z, size);
    case Activation::silu: return multiply_by_slope<Silu>(grad, z, size);
  }
}

template <class T>
void bias_act_rows(const BiasActArgs& args, int64_t m0, int64_t m1) {
  float z[kColumns];
  for_columns(m0, m1, args.k, [&](int64_t m, int64_t i, int64_t size) {
    biased<T>(args, m, i, size, z);
    activate_in_place(args.act, z, size);
    round_to(static_cast<T*>(args.out) + m * args.k + i, z, size);
  });
}

template <class T>
void bias_act_backward_rows(const BiasActBackwardArgs& args, int64_t m0, int64_t m1,
                            ColumnSums sums) {
  float z[kColumns], dz[kColumns];
  for_columns(m0, m1, args.k, [&](int64_t m, int64_t i, int64_t size) {
    widen_to(dz, static_cast<const T*>(args.grad.data) + m * args.grad.stride + i, size);
    if (args.act != Activation::none) {
      biased<T>(args, m, i, size, z);
      multiply_by_slope(args.act, dz, z, size);
    }
    if (sums.b) add_in_place(sums.b + i, dz, size);
    if (args.dx) round_to(static_cast<T*>(args.dx) + m * args.k + i, dz, size);
  });
}

}  // namespace
}  // namespace accel_cpu
