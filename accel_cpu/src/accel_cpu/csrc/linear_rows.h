// Rows of x and of w whose k lie one behind the other, where they are or packed, written over the
// vectors of the vec_*.h included before it.
#pragma once

#include "weight_panel.h"

namespace accel_cpu {
namespace {

template <class T>
struct LyingRows {
  const T* data;
  int64_t stride;
};

// Those of a matrix by rows, from row r and k0 on.
template <class T>
LyingRows<T> rows_at(const Matrix& a, int64_t r, int64_t k0) {
  return {static_cast<const T*>(a.data) + r * a.stride + k0, a.stride};
}

// Consecutive k that a lane sums before the lanes are added: 4 KiB of a row, so that six rows of x
// and four of w stay in an L1 of 48.
template <class X>
constexpr int64_t kDotChunk = kDotChunkBytes / sizeof(typename X::Element);

template <class X>
int64_t round_to_chunks(int64_t k) {
  return (k + kDotChunk<X> - 1) / kDotChunk<X> * kDotChunk<X>;
}

// From one packed row to the next, of k elements: a line more, or rows would meet in a few sets of
// the cache.
template <class X>
int64_t packed_stride(int64_t k) {
  return (k + kBlock<X> - 1) / kBlock<X> * kBlock<X> + 64 / sizeof(typename X::Element);
}

inline void copy_row(const bf16* from, int64_t k, bf16* to) {
  __builtin_memcpy(to, from, k * sizeof *to);
}
template <class T>
void copy_row(const T* from, int64_t k, float* to) {
  widen_to(to, from, k);
}

// Of a matrix by columns a line holds one k of several rows, and memory is read best from row to
// row, those that come next asked for.
template <class X, class T>
void turn_columns(const T* from, int64_t stride, int64_t rows, int64_t k, typename X::Element* out,
                  int64_t out_stride) {
  for (int64_t i = 0; i < k; i += kBlock<X>) {
    for (int64_t d = 0; d < smaller(k - i, kBlock<X>); ++d) {
      const char* next = reinterpret_cast<const char*>(from + (i + d) * stride + rows);
      for_each_line(rows * sizeof(T), [=](int64_t b) { __builtin_prefetch(next + b, 0, 2); });
    }
    for (int64_t r = 0; r < rows; r += kLanes) {
      typename X::Operand block[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) {
        const int64_t done = i + j * X::kDepth;
        block[j] = load_step<X>(from + done * stride + r, stride, rows - r, k - done);
      }
      X::transpose(block);
      const int count = static_cast<int>(smaller(rows - r, kLanes));
      for (int j = 0; j < count; ++j) {
        __builtin_memcpy(out + (r + j) * out_stride + i, block + j, sizeof block[j]);
      }
    }
  }
}

// Rows [r, r1) of a matrix of T over `k` of k from k0 on, in the elements that X multiplies.
template <class X, class T>
LyingRows<typename X::Element> packed_rows(const Matrix& a, int64_t r, int64_t r1, int64_t k0,
                                           int64_t k, typename X::Element* out) {
  const int64_t stride = packed_stride<X>(k);
  const T* data = static_cast<const T*>(a.data);
  if (a.by_columns) {
    turn_columns<X>(data + k0 * a.stride + r, a.stride, r1 - r, k, out, stride);
  } else {
    for (int64_t i = r; i < r1; ++i) {
      copy_row(data + i * a.stride + k0, k, out + (i - r) * stride);
    }
  }
  return {out, stride};
}

}  // namespace
}  // namespace accel_cpu
