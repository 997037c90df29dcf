// Tiles of a product of few rows, written over the vectors of the vec_*.h included before it: w is
// used as it is read, without a panel, summed as in linear_tile.h. At M=1 a panel takes half as
// long again (K=N=256, Zen 3).
#pragma once

#include "linear_tile.h"

namespace accel_cpu {
namespace {

constexpr int kFewRows = kTileRows < 6 ? kTileRows : 6;

// A tile of w by columns, the first at `w`. An address past the end of w is harmless to prefetch.
template <class Dot>
struct InColumns {
  const typename Dot::Element* w;
  int64_t stride;
  template <int C>
  typename Dot::Operand at(int64_t step, int c) const {
    return Dot::load_columns(Depth<Dot::kDepth>{}, w + step * Dot::kDepth * stride + c * kLanes,
                             stride);
  }
  template <int C>
  void prefetch(int64_t step) const {
    constexpr int64_t kBytes = C * kLanes * sizeof(*w);
    for (int d = 0; d < Dot::kDepth; ++d) {
      const char* next = reinterpret_cast<const char*>(w + (step * Dot::kDepth + d) * stride);
      for_each_line(kBytes, [=](int64_t i) { __builtin_prefetch(next + kBytes + i, 0, 2); });
    }
  }
};

// A tile of w by rows, so many of them, the first at `w`; what is read later is asked for
// meanwhile.
template <class Dot>
struct InRows {
  const typename Dot::Element* w;
  int64_t stride, rows, k;
  Ahead& ahead;
};

// G times kLanes rows of w after the other, transposed in registers, block by block. Memory likes
// few streams: with 32 rows of K=1024 under way together it gives 10 GB/s in place of 16 (fp32, one
// Zen 3 core). With one row of x their sums wait for each addition's end, unless there are others.
template <class Dot, int R, int G>
void transposed_tile(const typename Dot::Staged* x, InRows<Dot> w, int64_t /*steps*/,
                     TileStart from, TileSums to) {
  for (int64_t column = 0; column < w.rows; column += G * kLanes) {
    const auto* rows = w.w + column * w.stride;
    const typename Dot::Staged* a = x;
    TileStart sums = from;
    int64_t k = 0;
    do {
      Vec acc[G * R];
#pragma GCC unroll 12
      for (int j = 0; j < G * R; ++j) acc[j] = zero();
      const int64_t size = smaller(w.k - k, kChunk);
      for (int64_t i = 0; i < size; i += kBlock<Dot>) {
        typename Dot::Operand b[G][kLanes];
#pragma GCC unroll 2
        for (int g = 0; g < G; ++g) {
          const int64_t left = w.rows - column - g * kLanes;
          const auto* from = rows + (left > 0 ? g * kLanes * w.stride : 0) + k + i;
          w.ahead.ask(kBlockBytes<Dot>);
          load_block<Dot>(from, w.stride, left > 0 ? left : 1, size - i, b[g]);
        }
        const auto step = [&](int j) {
#pragma GCC unroll 12
          for (int r = 0; r < R; ++r) {
            const auto one = Dot::spread(a[r * kChunkSteps<Dot> + i / Dot::kDepth + j]);
#pragma GCC unroll 2
            for (int g = 0; g < G; ++g) acc[r * G + g] = Dot::madd(one, b[g][j], acc[r * G + g]);
          }
        };
        if (size - i >= kBlock<Dot>) {
#pragma GCC unroll 16
          for (int j = 0; j < kLanes; ++j) step(j);
        } else {
          for (int j = 0; j < steps_of<Dot>(size - i); ++j) step(j);
        }
      }
#pragma GCC unroll 12
      for (int j = 0; j < G * R; ++j) {
        const int64_t at = column + j % G * kLanes;
        const Vec sum = sums.data ? load(sums.data + j / G * sums.stride + at) : zero();
        store(to.data + j / G * to.stride + at, add(sum, acc[j]));
      }
      sums = to;
      a += R * kChunkSteps<Dot>;
      k += kChunk;
    } while (k < w.k);
  }
}

// The most rows that take a w by rows as it is read. Of fp32 as many as have room in the registers
// beside a block of w: 8 rows take 0.8 of the time they take through panels (K=1024, N=4096, two
// Zen 5 cores), in pairs of bf16 a little more.
template <class Dot>
constexpr int kTransposedRows = Dot::kDepth == 1 && kLanes == 16 ? 12 : kFewRows;

// The tile for 1 to kTransposedRows rows.
template <class Dot, int R = kTransposedRows<Dot>>
LinearTile<Dot, InRows<Dot>> transposed_tile_of(int rows) {
  if constexpr (R > 1) {
    if (rows < R) return transposed_tile_of<Dot, R - 1>(rows);
  }
  return transposed_tile<Dot, R, 1>;
}

}  // namespace
}  // namespace accel_cpu
