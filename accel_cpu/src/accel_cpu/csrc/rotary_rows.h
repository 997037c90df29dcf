// Rows of rotary on one thread, written over the vectors of the vec_*.h included before it.
// Products and sums round separately, as in a composition of torch's operations.
#pragma once

#include "elementwise.h"
#include "kernels.h"

namespace accel_cpu {
namespace {

// Turns the pairs (x[i], x[i + r]).
template <class T>
void rotate_halves(const T* x, const float* cos, const float* sin, T* out, int64_t r) {
  for_each_vector(r, [=](int64_t i, auto... n) {
    const Vec a = load(x + i, n...), b = load(x + r + i, n...);
    const Vec c = load(cos + i, n...), s = load(sin + i, n...);
    store(out + i, sub(mul(a, c), mul(b, s)), n...);
    store(out + r + i, add(mul(b, c), mul(a, s)), n...);
  });
}

inline void rotate_pairs(const float* __restrict x, const float* __restrict cos,
                         const float* __restrict sin, float* __restrict out, int64_t r) {
  for (int64_t i = 0; i < r; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    out[2 * i] = a * cos[i] - b * sin[i];
    out[2 * i + 1] = b * cos[i] + a * sin[i];
  }
}

// Turns the pairs (x[2 i], x[2 i + 1]), some at a time, half precisions in fp32 on the stack.
template <class T>
void rotate_pairs(const T* x, const float* cos, const float* sin, T* out, int64_t r) {
  constexpr int64_t kPairs = 64;
  float a[2 * kPairs], b[2 * kPairs];
  for (int64_t start = 0; start < r; start += kPairs) {
    const int64_t pairs = r - start < kPairs ? r - start : kPairs;
    widen_to(a, x + 2 * start, 2 * pairs);
    rotate_pairs(a, cos + start, sin + start, b, pairs);
    round_to(out + 2 * start, b, 2 * pairs);
  }
}

template <class T>
void rotary_rows(const RotaryArgs& args, int64_t m0, int64_t m1) {
  const int64_t turned = 2 * args.r;
  for (int64_t m = m0; m < m1; ++m) {
    const float* cos = static_cast<const float*>(args.cos.data) + m * args.cos.stride;
    const float* sin = static_cast<const float*>(args.sin.data) + m * args.sin.stride;
    for (int64_t h = 0; h < args.h; ++h) {
      const T* x = static_cast<const T*>(args.x.data) + m * args.x.row + h * args.x.head;
      T* out = static_cast<T*>(args.out) + (m * args.h + h) * args.d;
      if (args.interleaved) rotate_pairs(x, cos, sin, out, args.r);
      if (!args.interleaved) rotate_halves(x, cos, sin, out, args.r);
      __builtin_memcpy(out + turned, x + turned, (args.d - turned) * sizeof(T));
    }
  }
}

}  // namespace
}  // namespace accel_cpu
