// Rows of bias_act and their gradients on one thread, some columns at a time in fp32 on the stack,
// written over the vectors of the vec_*.h included before it.
#pragma once

#include <math.h>

#include "row_sum.h"

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
  const T* x = row_of<T>(args.x, m) + i;
  const T* b = args.b ? static_cast<const T*>(args.b) + i : nullptr;
  for_each_vector(size, [=](int64_t j, auto... n) {
    const Vec a = load(x + j, n...);
    store(z + j, b ? add(a, load(b + j, n...)) : a, n...);
  });
}

// No activation.
struct Identity {
  static Vec of(Vec z) { return z; }
  static Vec slope(Vec) { return broadcast(1.0f); }
};

// Calls f(F{}) with the activation.
template <class F>
void with_activation(Activation act, F f) {
  switch (act) {
    case Activation::none: return f(Identity{});
    case Activation::relu: return f(Relu{});
    case Activation::gelu: return f(Gelu{});
    case Activation::gelu_tanh: return f(GeluTanh{});
    case Activation::silu: return f(Silu{});
  }
}

// dx = grad act'(x + b), added to `sums`, if there are any; b and dx may be none.
template <class F>
void bias_act_backward_of(F, const float* x, const float* b, const float* grad, float* sums,
                          float* dx, int64_t size) {
  for_each_vector(size, [=](int64_t i, auto... n) {
    const Vec a = load(x + i, n...);
    const Vec dz = mul(load(grad + i, n...), F::slope(b ? add(a, load(b + i, n...)) : a));
    if (sums) store(sums + i, add(load(sums + i, n...), dz), n...);
    if (dx) store(dx + i, dz, n...);
  });
}

// max(x + b, floor)
template <class T>
void clip_row(const T* x, const T* b, float floor, T* out, int64_t k) {
  for_each_vector(k, [=](int64_t i, auto... n) {
    const Vec a = load(x + i, n...);
    store(out + i, max(broadcast(floor), b ? add(a, load(b + i, n...)) : a), n...);  // NaN stays
  });
}

template <class T>
void bias_act_rows(const BiasActArgs& args, int64_t m0, int64_t m1) {
  T* out = static_cast<T*>(args.out);
  if (args.act == Activation::none || args.act == Activation::relu) {
    const float floor = args.act == Activation::relu ? 0.0f : -INFINITY;
    for (int64_t m = m0; m < m1; ++m) {
      clip_row(row_of<T>(args.x, m), static_cast<const T*>(args.b), floor, out + m * args.k,
               args.k);
    }
    return;
  }
  float part[kColumns];
  for_columns(m0, m1, args.k, [&](int64_t m, int64_t i, int64_t size) {
    T* to = out + m * args.k + i;
    float* z = fp32_place(to, part);
    biased<T>(args, m, i, size, z);
    activate_in_place(args.act, z, size);
    if (z == part) round_to(to, z, size);
  });
}

template <class T>
void bias_act_backward_rows(const BiasActBackwardArgs& args, int64_t m0, int64_t m1,
                            ColumnSums sums) {
  float parts[4][kColumns];
  for_columns(m0, m1, args.k, [&](int64_t m, int64_t i, int64_t size) {
    T* dx = args.dx ? static_cast<T*>(args.dx) + m * args.k + i : nullptr;
    const float* x = widened(row_of<T>(args.x, m) + i, parts[0], size);
    const float* grad = widened(row_of<T>(args.grad, m) + i, parts[1], size);
    const float* b =
        args.b ? widened(static_cast<const T*>(args.b) + i, parts[2], size) : nullptr;
    float* sum = sums.b ? sums.b + i : nullptr;
    float* dz = dx ? fp32_place(dx, parts[3]) : nullptr;
    with_activation(args.act, [=](auto act) {
      bias_act_backward_of(act, x, b, grad, sum, dz, size);
    });
    if (dz == parts[3]) round_to(dx, dz, size);
  });
}

}  // namespace
}  // namespace accel_cpu
