// What dropout leaves of a row, written over the vectors of the vec_*.h included before it.
#pragma once

#include "elementwise.h"
#include "row_kernels.h"

namespace accel_cpu {
namespace {

// SplitMix64 (accel/contracts/random.py): a stream for each row, 64 bits for each two columns.
constexpr uint64_t kGamma = 0x9E3779B97F4A7C15;
constexpr int64_t kMostSurvivors = 512;  // asked for at once

inline uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// Where columns [i, i + size) of the row of this number survive, i even: `scale`, else 0.
void survivors(const Dropout& dropout, int64_t number, int64_t i, int64_t size, float* out) {
  const uint64_t seed = mixed(static_cast<uint64_t>(dropout.seed));
  const uint64_t row = mixed(seed + static_cast<uint64_t>(number) * kGamma);
  const int64_t count = (size + 1) / 2;
  // Loops that compilers make vectors of: no product but those of `mixed`, nothing read anew.
  uint64_t pairs[kMostSurvivors / 2], state = row + static_cast<uint64_t>(i / 2) * kGamma;
  for (int64_t j = 0; j < count; ++j) pairs[j] = mixed(state += kGamma);
  uint32_t bits[kMostSurvivors];
  __builtin_memcpy(bits, pairs, static_cast<size_t>(count) * sizeof(uint64_t));  // lower half first
  const uint32_t least = dropout.least;
  const float scale = dropout.scale;
  for (int64_t j = 0; j < size; ++j) out[j] = bits[j] >= least ? scale : 0.0f;
}

// a times what `survivors` left; 0, whatever it was, where that is 0.
inline void keep(const float* left, float* a, int64_t size) {
  for_each_vector(size, [=](int64_t i, auto... n) {
    const Vec scale = load(left + i, n...);
    store(a + i, where_less(zero(), scale, mul(load(a + i, n...), scale), zero()), n...);
  });
}

}  // namespace
}  // namespace accel_cpu
