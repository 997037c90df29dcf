// Rows of layer_norm on one thread, written over the vectors of the vec_*.h included before it.
#pragma once

#include <math.h>

#include "rms_norm_rows.h"
#include "row_kernels.h"
#include "row_sum.h"

namespace accel_cpu {
namespace {

template <class T>
void layer_norm_rows(const NormArgs& args, int64_t m0, int64_t m1) {
  const T* w = static_cast<const T*>(args.w);
  const T* b = static_cast<const T*>(args.b);
  const float size = static_cast<float>(args.k);
  for (int64_t m = m0; m < m1; ++m) {
    const T* x = normed_row<T>(args, m, args.total);
    T* out = static_cast<T*>(args.out) + m * args.k;
    const float sum =
        row_sum(args.k, [=](Vec acc, int64_t i, auto... n) { return add(acc, load(x + i, n...)); });
    const Vec mean = broadcast(sum / size);
    const float squares = row_sum(args.k, [=](Vec acc, int64_t i, auto... n) {
      const Vec a = first_of(sub(load(x + i, n...), mean), zero(), n...);
      return madd(a, a, acc);
    });
    const Vec scale = broadcast(1.0f / ::sqrtf(squares / size + args.eps));
    for_each_vector(args.k, [=](int64_t i, auto... n) {
      Vec a = mul(sub(load(x + i, n...), mean), scale);
      if (w) a = mul(a, load(w + i, n...));
      if (b) a = add(a, load(b + i, n...));
      store(out + i, a, n...);
    });
  }
}

}  // namespace
}  // namespace accel_cpu
