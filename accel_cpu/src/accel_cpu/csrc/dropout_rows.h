// Rows of dropout_add on one thread, written over the vectors of the vec_*.h included before it.
// Products and sums round separately, as in a composition of torch's operations.
#pragma once

#include "bias_act_rows.h"

namespace accel_cpu {
namespace {

// SplitMix64 (accel/contracts/random.py): a stream for each row, 64 bits for each two columns.
constexpr uint64_t kGamma = 0x9E3779B97F4A7C15;

inline uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

// Where columns [i, i + size) of row m survive, i even: `scale`, else 0.
void survivors(const DropoutAddArgs& args, int64_t m, int64_t i, int64_t size, float* out) {
  const uint64_t number = static_cast<uint64_t>(args.rows ? args.rows[m] : m);
  const uint64_t row = mixed(mixed(static_cast<uint64_t>(args.seed)) + number * kGamma);
  const int64_t count = (size + 1) / 2;
  // Loops that compilers make vectors of: no product but those of `mixed`, nothing read anew.
  uint64_t pairs[kColumns / 2], state = row + static_cast<uint64_t>(i / 2) * kGamma;
  for (int64_t j = 0; j < count; ++j) pairs[j] = mixed(state += kGamma);
  uint32_t bits[kColumns];
  __builtin_memcpy(bits, pairs, static_cast<size_t>(count) * sizeof(uint64_t));  // lower half first
  const uint32_t least = args.least;
  const float scale = args.scale;
  for (int64_t j = 0; j < size; ++j) out[j] = bits[j] >= least ? scale : 0.0f;
}

// residual + x + b of a whole row.
template <class T>
void add_row(const T* x, const T* b, const T* residual, T* out, int64_t k) {
  for_each_vector(k, [=](int64_t i, auto... n) {
    Vec z = load(x + i, n...);
    if (b) z = add(z, load(b + i, n...));
    if (residual) z = add(load(residual + i, n...), z);
    store(out + i, z, n...);
  });
}

template <class T>
void dropout_add_rows(const DropoutAddArgs& args, int64_t m0, int64_t m1, ColumnSums sums) {
  if (!args.drops && !sums.b) {
    for (int64_t m = m0; m < m1; ++m) {
      add_row(row_of<T>(args.x, m), static_cast<const T*>(args.b),
              args.residual.data ? row_of<T>(args.residual, m) : nullptr,
              static_cast<T*>(args.out) + m * args.k, args.k);
    }
    return;
  }
  float z[kColumns], kept[kColumns];
  for_columns(m0, m1, args.k, [&](int64_t m, int64_t i, int64_t size) {
    biased<T>(args, m, i, size, z);
    if (args.drops) {
      survivors(args, m, i, size, kept);
      for_each_vector(size, [&](int64_t j, auto... n) {
        const Vec scale = load(kept + j, n...);
        store(z + j, where_less(zero(), scale, mul(load(z + j, n...), scale), zero()), n...);
      });
    }
    if (sums.b) add_in_place(sums.b + i, z, size);
    if (args.residual.data) add_in_place(z, row_of<T>(args.residual, m) + i, size);
    if (args.out) round_to(static_cast<T*>(args.out) + m * args.k + i, z, size);
  });
}

}  // namespace
}  // namespace accel_cpu
