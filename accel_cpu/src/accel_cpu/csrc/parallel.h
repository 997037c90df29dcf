// What the files that deal work to threads share.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels.h"
#include "team.h"

namespace accel_cpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Elements below which a second thread gains less than waking it may cost.
constexpr int64_t kRowGrain = 32'768;

// Multiply-adds below which it does. With the threads awake two break even at 30k, 1.6 us (Zen 4);
// asleep they take several times that.
constexpr int64_t kProductGrain = 100'000;

// Calls work(context, i) for every i below count, once, on the `threads` threads of OpenMP's next
// parallel region or on the team's that this thread is of; on this thread alone if threads is 1.
using BlockWork = void (*)(void* context, int64_t i);
void deal_blocks(int64_t count, int threads, BlockWork work, void* context);

template <class F>
void deal(int64_t count, int threads, F f) {
  deal_blocks(count, threads, [](void* f, int64_t i) { (*static_cast<F*>(f))(i); }, &f);
}

// Deals m rows of k elements each to the threads, as f(m0, m1). `grain` elements are worth two.
template <class F>
void for_rows(int64_t m, int64_t k, int threads, F f, int64_t grain = kRowGrain) {
  if (m == 0 || k == 0) return;
  if (m * k < grain) threads = 1;
  const int64_t chunk = ceil_div(m, 4 * threads);
  deal(ceil_div(m, chunk), threads,
       [&](int64_t i) { f(i * chunk, std::min(m, (i + 1) * chunk)); });
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
