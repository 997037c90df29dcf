// Rows of rms_norm on one thread, written over the vectors of the vec_*.h included before it.
#pragma once

#include <math.h>

#include "row_kernels.h"
#include "row_sum.h"

namespace accel_cpu {
namespace {

// Row m of what a norm is of: x's, or x + residual, written to `total`.
template <class T, class Args>
const T* normed_row(const Args& args, int64_t m, void* total) {
  const T* x = row_of<T>(args.x, m);
  if (!args.residual.data) return x;
  const T* residual = row_of<T>(args.residual, m);
  T* sum = static_cast<T*>(total) + m * args.k;
  for_each_vector(args.k, [=](int64_t i, auto... n) {
    store(sum + i, add(load(x + i, n...), load(residual + i, n...)), n...);
  });
  return sum;
}

template <class T>
void rms_norm_rows(const NormArgs& args, int64_t m0, int64_t m1) {
  const T* w = static_cast<const T*>(args.w);
  for (int64_t m = m0; m < m1; ++m) {
    const T* x = normed_row<T>(args, m, args.total);
    T* out = static_cast<T*>(args.out) + m * args.k;
    const float squares = row_sum(args.k, [=](Vec acc, int64_t i, auto... n) {
      const Vec a = load(x + i, n...);
      return madd(a, a, acc);
    });
    const float mean = squares / static_cast<float>(args.k);
    const Vec scale = broadcast(1.0f / ::sqrtf(mean + args.eps));
    for_each_vector(args.k, [=](int64_t i, auto... n) {
      const Vec a = mul(load(x + i, n...), scale);
      store(out + i, w ? mul(a, load(w + i, n...)) : a, n...);
    });
  }
}

}  // namespace
}  // namespace accel_cpu
