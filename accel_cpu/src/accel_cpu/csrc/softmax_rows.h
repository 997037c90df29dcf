// Rows of softmax and their gradients on one thread, written over the vectors of the vec_*.h
// included before it.
#pragma once

#include <math.h>

#include "row_kernels.h"
#include "row_sum.h"

namespace accel_cpu {
namespace {

// z = x scale + mask, of which the largest is returned, or NaN where there is one behind it.
template <class T>
float scores(const SoftmaxArgs& args, int64_t m, float* z) {
  const T* x = row_of<T>(args.x, m);
  const T* mask = args.mask ? static_cast<const T*>(args.mask) + args.mask_at[m] : nullptr;
  const Vec scale = broadcast(args.scale);
  Vec top = broadcast(-INFINITY);
  for_each_vector(args.k, [&](int64_t i, auto... n) {
    Vec a = mul(load(x + i, n...), scale);
    if (mask) a = add(a, load(mask + i, n...));
    store(z + i, a, n...);
    top = max(top, first_of(a, broadcast(-INFINITY), n...));
  });
  return highest_lane(top);
}

// Elements summed before they are added to the others: a vocabulary in one chain would lose digits.
constexpr int64_t kSoftmaxRun = 1024;

// z = e^(z - base), of which the sum is returned.
inline float exponentials(float* z, int64_t k, Vec base) {
  float total = 0;
  for (int64_t start = 0; start < k; start += kSoftmaxRun) {
    float* run = z + start;
    total += row_sum(k - start < kSoftmaxRun ? k - start : kSoftmaxRun,
                     [=](Vec acc, int64_t i, auto... n) {
                       const Vec p = exp(sub(load(run + i, n...), base));
                       store(run + i, p, n...);
                       return add(acc, first_of(p, zero(), n...));
                     });
  }
  return total;
}

template <class T>
void softmax_rows(const SoftmaxArgs& args, int64_t m0, int64_t m1, float* scratch) {
  for (int64_t m = m0; m < m1; ++m) {
    T* out = static_cast<T*>(args.out) + m * args.k;
    float* z = fp32_place(out, scratch);
    const float top = scores<T>(args, m, z);
    // Of a row of nothing but -inf the exponentials are 0, as is the row; a NaN makes it NaN.
    const float total = exponentials(z, args.k, broadcast(top == -INFINITY ? 0.0f : top));
    const Vec share = broadcast(total == 0 ? 0.0f : 1.0f / total);
    for_each_vector(args.k, [=](int64_t i, auto... n) {
      store(out + i, mul(load(z + i, n...), share), n...);
    });
  }
}

// dx = p (dp - sum(p dp)) scale
template <class T>
void softmax_backward_rows(const SoftmaxBackwardArgs& args, int64_t m0, int64_t m1) {
  for (int64_t m = m0; m < m1; ++m) {
    const T* grad = row_of<T>(args.grad, m);
    const T* p = row_of<T>(args.p, m);
    T* dx = static_cast<T*>(args.dx) + m * args.k;
    const Vec sum = broadcast(row_sum(args.k, [=](Vec acc, int64_t i, auto... n) {
      return madd(load(p + i, n...), load(grad + i, n...), acc);
    }));
    const Vec scale = broadcast(args.scale);
    for_each_vector(args.k, [=](int64_t i, auto... n) {
      const Vec dz = mul(load(p + i, n...), sub(load(grad + i, n...), sum));
      store(dx + i, mul(dz, scale), n...);
    });
  }
}

}  // namespace
}  // namespace accel_cpu
