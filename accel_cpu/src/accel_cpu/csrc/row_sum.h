// Rows and sums over them, written over the vectors of the vec_*.h included before it. A sum's
// order depends on the row's length alone.
#pragma once

#include "elementwise.h"
#include "row_kernels.h"

namespace accel_cpu {
namespace {

template <class T>
const T* row_of(const Matrix& rows, int64_t m) {
  return static_cast<const T*>(rows.data) + m * rows.stride;
}

// `size` elements at p in fp32: where they lie, or in `part`.
inline const float* widened(const float* p, float*, int64_t) { return p; }
template <class T>
const float* widened(const T* p, float* part, int64_t size) {
  widen_to(part, p, size);
  return part;
}

// Where fp32 values on the way to `out` may lie: there, or in `part`.
inline float* fp32_place(float* out, float*) { return out; }
template <class T>
float* fp32_place(T*, float* part) {
  return part;
}

// Sums over [0, k) with `step`, called as step(acc, i) for a whole vector and step(acc, i, n) for
// the n elements left over; it returns acc and what it adds to it.
template <class F>
float row_sum(int64_t k, F step) {
  Vec acc[4] = {zero(), zero(), zero(),
                zero()};  // four, so that one addition need not wait for the one before
  const int64_t unrolled = k - k % (4 * kLanes);
  for (int64_t i = 0; i < unrolled; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) acc[j] = step(acc[j], i + j * kLanes);
  }
  for_each_vector(k - unrolled,
                  [&](int64_t i, auto... n) { acc[0] = step(acc[0], unrolled + i, n...); });
  float sums[4];
  reduce4(acc, sums);
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

// Up to four sums over a row at once: step(acc, i, n...) adds to acc[0], acc[1], ...
template <int N, class F>
void row_sums(int64_t k, float (&sums)[4], F step) {
  Vec even[4], odd[4];
  for (int j = 0; j < 4; ++j) even[j] = odd[j] = zero();
  const int64_t unrolled = k - k % (2 * kLanes);
  for (int64_t i = 0; i < unrolled; i += 2 * kLanes) {
    step(even, i);
    step(odd, i + kLanes);
  }
  for_each_vector(k - unrolled, [&](int64_t i, auto... n) { step(even, unrolled + i, n...); });
  for (int j = 0; j < N; ++j) even[j] = add(even[j], odd[j]);
  reduce4(even, sums);
}

// a, or its first n lanes and `rest` in the others.
inline Vec first_of(Vec a, Vec /*rest*/) { return a; }
inline Vec first_of(Vec a, Vec rest, int n) {
  return where_less(lane_index(), broadcast(static_cast<float>(n)), a, rest);
}

inline float highest_lane(Vec a) {
  float lanes[kLanes];
  store(lanes, a);
  float most = lanes[0];
  for (const float lane : lanes) most = lane > most ? lane : most;
  return most;
}

}  // namespace
}  // namespace accel_cpu
