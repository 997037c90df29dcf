// What the files that deal work to the OpenMP threads share.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"

namespace accel_cpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Elements below which a second thread gains less than waking it may cost.
constexpr int64_t kRowGrain = 32'768;

// Multiply-adds below which it does. With the threads awake two break even at 30k, 1.6 us (Zen 4);
// asleep they take several times that.
constexpr int64_t kProductGrain = 100'000;

// Deals m rows of k elements each to the threads, as f(m0, m1). `grain` elements are worth two.
template <class F>
void for_rows(int64_t m, int64_t k, int threads, F f, int64_t grain = kRowGrain) {
  if (m == 0 || k == 0) return;
  if (m * k < grain) threads = 1;
  const int64_t chunk = ceil_div(m, 4 * threads);
#pragma omp parallel for schedule(dynamic) if (threads > 1)
  for (int64_t m0 = 0; m0 < m; m0 += chunk) f(m0, std::min(m, m0 + chunk));
}

// The calling thread's own, kept for its next block and its next call.
inline float* scratch(int64_t size) {
  constexpr int64_t kAlign = 64;  // bytes, a vector of AVX-512
  thread_local std::vector<float> memory;
  const size_t wanted = size + kAlign / sizeof(float);
  if (memory.size() < wanted) memory.resize(wanted);
  return reinterpret_cast<float*>(round_up(reinterpret_cast<uintptr_t>(memory.data()), kAlign));
}

}  // namespace accel_cpu
