// What this processor can do at most, for `accel bench`: multiply-adds that wait for nothing, and
// memory read from end to end. A library of its own, compiled when first asked for.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>

#include "amx_registers.h"
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

#if defined(__aarch64__)
constexpr int kAccumulators = 16;  // enough to hide the latency of four multiply-adds a cycle
#else
constexpr int kAccumulators = 12;  // of two
#endif
constexpr int64_t kSteps = 1 << 14;

volatile float kept;  // what was computed, so that it is

// Flops of a call. Sums lose a thousandth a step, and at its end are still normal; each is its own
// factor and term, as NEON's instruction wants it, or a move would go with each.
using Loop = int64_t (*)();

#define MULTIPLY_ADDS(NAME, ATTRIBUTES, BYTES)                              \
  ATTRIBUTES int64_t NAME() {                                               \
    typedef float Vec __attribute__((vector_size(BYTES)));                  \
    const Vec share = 0 * kept - 0.001f - Vec{};                            \
    Vec sums[kAccumulators];                                                \
    for (int a = 0; a < kAccumulators; ++a) sums[a] = (float)a - Vec{};     \
    for (int64_t i = 0; i < kSteps; ++i) {                                  \
      for (int a = 0; a < kAccumulators; ++a) sums[a] += sums[a] * share;   \
    }                                                                       \
    Vec all = sums[0];                                                      \
    for (int a = 1; a < kAccumulators; ++a) all += sums[a];                 \
    kept = all[0];                                                          \
    return kSteps * kAccumulators * 2 * (BYTES / 4);                        \
  }

MULTIPLY_ADDS(baseline, , 16)
#if defined(__x86_64__)
MULTIPLY_ADDS(avx2, __attribute__((target("avx2,fma"))), 32)
MULTIPLY_ADDS(avx512, __attribute__((target("avx512f,fma,prefer-vector-width=512"))), 64)

__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) int64_t avx512_bf16() {
  const __m512bh x = (__m512bh)_mm512_set1_epi16(0x3c00);  // 2^-7: the sums stay finite
  __m512 sums[kAccumulators];
  for (int a = 0; a < kAccumulators; ++a) sums[a] = _mm512_set1_ps(kept);
  for (int64_t i = 0; i < kSteps; ++i) {
    for (int a = 0; a < kAccumulators; ++a) sums[a] = _mm512_dpbf16_ps(sums[a], x, x);
  }
  __m512 all = sums[0];
  for (int a = 1; a < kAccumulators; ++a) all = _mm512_add_ps(all, sums[a]);
  kept = 0 * _mm512_reduce_add_ps(all);
  return kSteps * kAccumulators * 2 * 32;
}

// Of zeros: no sum is read.
__attribute__((target("amx-tile,amx-bf16"))) int64_t amx_bf16() {
  _tile_loadconfig(&accel_cpu::kWholeTiles);  // zeros all
  for (int64_t i = 0; i < kSteps; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return kSteps * 4 * 2 * 16 * 16 * 32;
}
#endif

struct Means {
  Loop loop;
  const char* name;
};

Means fp32() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return {avx512, "multiply-adds of AVX-512"};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return {avx2, "multiply-adds of AVX2"};
  }
#endif
#if defined(__aarch64__)
  return {baseline, "multiply-adds of NEON"};
#endif
  return {baseline, "multiplications and additions of 128 bits"};
}

Means bf16() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (accel_cpu::has_amx_bf16()) return {amx_bf16, "dot products of AMX-BF16"};
  if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl")) {
    return {avx512_bf16, "dot products of AVX-512-BF16"};
  }
#endif
  return {nullptr, nullptr};
}

Means means(int bf16_asked) { return bf16_asked ? bf16() : fp32(); }

// Runs work(thread) on the threads and returns the seconds from the first start to the last end.
double timed(int threads, const std::function<void(int)>& work) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> others;
  for (int t = 0; t < threads; ++t) {
    others.emplace_back([&, t] {
      ++ready;
      while (!go) std::this_thread::yield();
      work(t);
    });
  }
  while (ready < threads) std::this_thread::yield();
  const auto start = std::chrono::steady_clock::now();
  go = true;
  for (std::thread& other : others) other.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

// What the rate of a dtype is measured by; null where no instruction multiplies it.
EXPORT const char* accel_cpu_ceiling_means(int bf16_asked) { return means(bf16_asked).name; }

// Flops a second of `threads` threads, each of which runs its loop `times` times.
EXPORT double accel_cpu_ceiling_product(int bf16_asked, int threads, int times) {
  const Loop loop = means(bf16_asked).loop;
  const int64_t flops = loop();
  const double seconds = timed(threads, [&](int) {
    for (int i = 0; i < times; ++i) loop();
  });
  return static_cast<double>(flops) * times * threads / seconds;
}

// Bytes a second that `threads` threads read, each its part of the memory, 256 bytes at a time.
EXPORT double accel_cpu_ceiling_read(const void* memory, int64_t bytes, int threads) {
  typedef uint64_t Vec __attribute__((vector_size(64), aligned(8)));
  const int64_t part = bytes / threads / 256 * 256;
  std::vector<uint64_t> sums(threads);
  const double seconds = timed(threads, [&](int t) {
    const Vec* at = reinterpret_cast<const Vec*>(static_cast<const char*>(memory) + t * part);
    Vec sum[4] = {};
    for (int64_t i = 0; i < part / 64; i += 4) {
      for (int s = 0; s < 4; ++s) sum[s] ^= at[i + s];
    }
    const Vec all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
    sums[t] = all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7];
  });
  for (uint64_t sum : sums) kept = kept + 0 * static_cast<float>(sum);
  return static_cast<double>(part) * threads / seconds;
}
