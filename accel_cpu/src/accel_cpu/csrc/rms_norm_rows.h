// Rows of rms_norm on one thread, written over the vectors of the vec_*.h included before it. The
// order of a row's sum depends on k alone.
#pragma once

#include <math.h>

#include "elementwise.h"
#include "kernels.h"

namespace accel_cpu {
namespace {

template <class T>
float sum_of_squares(const T* x, int64_t k) {
  Vec acc[4] = {zero(), zero(), zero(),
                zero()};  // four, so that one addition need not wait for the one before
  const int64_t unrolled = k - k % (4 * kLanes);
  for (int64_t i = 0; i < unrolled; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const Vec a = load(x + i + j * kLanes);
      acc[j] = madd(a, a, acc[j]);
    }
  }
  for_each_vector(k - unrolled, [&](int64_t i, auto... n) {
    const Vec a = load(x + unrolled + i, n...);
    acc[0] = madd(a, a, acc[0]);
  });
  float sums[4];
  reduce4(acc, sums);
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

template <class T>
void rms_norm_rows(const RmsNormArgs& args, int64_t m0, int64_t m1) {
  const T* w = static_cast<const T*>(args.w);
  for (int64_t m = m0; m < m1; ++m) {
    const T* x = static_cast<const T*>(args.x.data) + m * args.x.stride;
    T* out = static_cast<T*>(args.out) + m * args.k;
    const float mean = sum_of_squares(x, args.k) / static_cast<float>(args.k);
    const Vec scale = broadcast(1.0f / ::sqrtf(mean + args.eps));
    for_each_vector(args.k, [=](int64_t i, auto... n) {
      const Vec a = mul(load(x + i, n...), scale);
      store(out + i, w ? mul(a, load(w + i, n...)) : a, n...);
    });
  }
}

}  // namespace
}  // namespace accel_cpu
