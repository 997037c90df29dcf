// One block of linear or lora_linear on one thread where w lies by columns, as [k, n]: read as it
// lies, written over the vectors of the vec_*.h included before it.
//
// A vector holds one k of neighbouring columns. Every output is summed in one order, whatever is
// computed beside it: kColumnChunk consecutive k one after the other (in pairs where an instruction
// multiplies pairs), then chunk after chunk. So an output depends on its row of x and its column of
// w alone, bit for bit. In one chain a sum over K=4096 would be wrong by 1.1e-6 of the
// result's RMS, in chunks it is by 2.2e-7 (fp32); and a batch of rows passes over a chunk of w
// while that lies in the cache.
#pragma once

#include "linear_block.h"

namespace accel_cpu {
namespace {

// As a type, so that a step over fewer k than usual is compiled apart.
template <int N>
struct Depth {};

// How a tile reads its operands: kDepth elements of a row of x, the same for all lanes, and as many
// rows of w. This one widens them to fp32.
template <class T>
struct WidenedColumns {
  using Element = T;
  using Staged = float;  // what a row of x holds for one step
  using Operand = Vec;
  static constexpr int kDepth = 1;
  static void stage(const T* x, int64_t k, Staged* out) {
    for_each_vector(k, [=](int64_t i, auto... n) { store(out + i, load(x + i, n...), n...); });
  }
  static Operand spread(Staged a) { return broadcast(a); }
  template <class... N>
  static Operand load_rows(Depth<1>, const T* w, int64_t, N... n) {
    return load(w, n...);
  }
  static Vec madd(Operand a, Operand b, Vec acc) { return accel_cpu::madd(a, b, acc); }
};

// Vectors in a tile of R rows.
constexpr int tile_vectors(int rows) {
  constexpr int kWidest = kColumnTile / kLanes;
  return rows * kWidest <= kAccumulators ? kWidest : 4;
}

template <class Dot>
using StagedRows = typename Dot::Staged[kMaxTileRows][kColumnChunk];

// out[r][j] += x[r] . w[.., j] over a chunk of k, for R rows of x and C vectors of columns j; with
// n, its first n columns. The next tile's rows of w are prefetched: hardware seldom follows rows
// this far apart. An address past the end of w is harmless.
template <class Dot, int R, int C, class... N>
void column_tile(const StagedRows<Dot>& x, const typename Dot::Element* w, int64_t stride,
                 int64_t k, float* out, int64_t out_stride, N... n) {
  constexpr int kDepth = Dot::kDepth;
  constexpr int kBytes = C * kLanes * static_cast<int>(sizeof(*w));
  Vec acc[R * C];
#pragma GCC unroll 24
  for (int j = 0; j < R * C; ++j) acc[j] = zero();

  const auto step = [&](auto depth, int64_t i) {
    const typename Dot::Element* row = w + i * kDepth * stride;
    typename Dot::Operand a[R];
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) a[r] = Dot::spread(x[r][i]);
    for (int d = 0; d < kDepth; ++d) {
      const char* next = reinterpret_cast<const char*>(row + d * stride) + kBytes;
      for (int byte = 0; byte < kBytes; byte += 64) __builtin_prefetch(next + byte, 0, 2);
    }
#pragma GCC unroll 24
    for (int c = 0; c < C; ++c) {
      const typename Dot::Operand b = Dot::load_rows(depth, row + c * kLanes, stride, n...);
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r) acc[r * C + c] = Dot::madd(a[r], b, acc[r * C + c]);
    }
  };
  const int64_t whole = k / kDepth;
  for (int64_t i = 0; i < whole; ++i) step(Depth<kDepth>{}, i);
  if constexpr (kDepth > 1) {
    if (k % kDepth) step(Depth<1>{}, whole);
  }

#pragma GCC unroll 24
  for (int j = 0; j < R * C; ++j) {
    float* sum = out + j / C * out_stride + j % C * kLanes;
    store(sum, add(load(sum, n...), acc[j]), n...);
  }
}

// Adds a chunk of k, from k0 on, to the block's sums of R rows from m on.
template <class Dot, int R>
void add_chunk(const LinearArgs& args, int64_t m, const Block& block, int64_t k0, int64_t k,
               float* sums) {
  using T = typename Dot::Element;
  constexpr int C = tile_vectors(R);
  StagedRows<Dot> x;
  for (int r = 0; r < R; ++r) {
    Dot::stage(static_cast<const T*>(args.x.data) + (m + r) * args.x.stride + k0, k, x[r]);
  }
  const int64_t stride = args.w.stride, columns = block.n1 - block.n0;
  const T* w = static_cast<const T*>(args.w.data) + k0 * stride + block.n0;
  int64_t n = 0;
  for (; n + C * kLanes <= columns; n += C * kLanes) {
    column_tile<Dot, R, C>(x, w + n, stride, k, sums + n, columns);
  }
  for_each_vector(columns - n, [&](int64_t i, auto... rest) {
    column_tile<Dot, R, 1>(x, w + n + i, stride, k, sums + n + i, columns, rest...);
  });
}

// Chooses the tile for 1 to kMaxTileRows rows.
template <class Dot, int R = kMaxTileRows>
void add_chunk(int rows, const LinearArgs& args, int64_t m, const Block& block, int64_t k0,
               int64_t k, float* sums) {
  if (rows == R) {
    add_chunk<Dot, R>(args, m, block, k0, k, sums);
  } else if constexpr (R > 1) {
    add_chunk<Dot, R - 1>(rows, args, m, block, k0, k, sums);
  }
}

// From the sums of a block to its results.
template <class T>
void finish_block(const LinearArgs& args, const Block& block, float* sums, int64_t stride) {
  Sums other;
  for (int64_t m = block.m0; m < block.m1; m += kMaxTileRows) {
    const int rows = static_cast<int>(block.m1 - m < kMaxTileRows ? block.m1 - m : kMaxTileRows);
    for (int64_t n = block.n0; n < block.n1; n += kMaxBlockColumns) {
      const int64_t end = block.n1 - n < kMaxBlockColumns ? block.n1 : n + kMaxBlockColumns;
      if (args.rank) dot_adapter<T>(rows, args, m, {m, m + rows, n, end}, other);
      for (int r = 0; r < rows; ++r) {
        float* row = sums + (m - block.m0 + r) * stride + (n - block.n0);
        finish_row<T>(args, m + r, n, end - n, row, other[r]);
      }
    }
  }
}

template <class Dot>
void linear_columns(const LinearArgs& args, const Block& block) {
  using T = typename Dot::Element;
  const int64_t columns = block.n1 - block.n0;
  float sums[kMaxBlockSums];
  for (int64_t i = 0; i < (block.m1 - block.m0) * columns; ++i) sums[i] = 0;
  for (int64_t k = 0; k < args.k; k += kColumnChunk) {
    const int64_t size = args.k - k < kColumnChunk ? args.k - k : kColumnChunk;
    for (int64_t m = block.m0; m < block.m1; m += kMaxTileRows) {
      const int64_t left = block.m1 - m;
      const int rows = static_cast<int>(left < kMaxTileRows ? left : kMaxTileRows);
      add_chunk<Dot>(rows, args, m, block, k, size, sums + (m - block.m0) * columns);
    }
  }
  finish_block<T>(args, block, sums, columns);
}

}  // namespace
}  // namespace accel_cpu
