// Tiles of a product of up to kFewRows rows, written over the vectors of the vec_*.h included
// before it: w is used as it is read, without a panel, summed as in linear_tile.h. At M=1 a panel
// takes half as long again (K=N=256, Zen 3).
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
  template <int R, int C>
  void scale(int64_t, Vec (&)[R * C]) const {}
};

// A tile of w by rows, so many of them, the first at `w`.
template <class Dot>
struct InRows {
  const typename Dot::Element* w;
  int64_t stride, rows, k;
};

// kLanes rows of w after the other, as memory likes few streams: transposed in registers, block by
// block. With 32 rows under way together it gives 10 GB/s in place of 16 (fp32, one Zen 3 core).
template <class Dot, int R>
void transposed_tile(const typename Dot::Staged* x, InRows<Dot> w, int64_t /*steps*/,
                     TileStart from, TileSums to) {
  for (int64_t column = 0; column < w.rows; column += kLanes) {
    const auto* rows = w.w + column * w.stride;
    const typename Dot::Staged* a = x;
    TileStart sums = from;
    int64_t k = 0;
    do {
      Vec acc[R];
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) acc[r] = zero();
      const auto step = [&](int64_t i, typename Dot::Operand b) {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          acc[r] = Dot::madd(Dot::spread(a[r * kChunkSteps<Dot> + i]), b, acc[r]);
        }
      };
      const int64_t size = smaller(w.k - k, kChunk);
      for (int64_t i = 0; i < size; i += kBlock<Dot>) {
        typename Dot::Operand b[kLanes];
        const auto* from = rows + k + i;
        prefetch_rows(from + kLanes * w.stride, w.stride);
        load_block<Dot>(from, w.stride, w.rows - column, size - i, b);
        if (size - i >= kBlock<Dot>) {
#pragma GCC unroll 16
          for (int j = 0; j < kLanes; ++j) step(i / Dot::kDepth + j, b[j]);
        } else {
          for (int j = 0; j < steps_of<Dot>(size - i); ++j) step(i / Dot::kDepth + j, b[j]);
        }
      }
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const Vec sum = sums.data ? load(sums.data + r * sums.stride + column) : zero();
        store(to.data + r * to.stride + column, add(sum, acc[r]));
      }
      sums = to;
      a += R * kChunkSteps<Dot>;
      k += kChunk;
    } while (k < w.k);
  }
}

// The tile for 1 to kFewRows rows.
template <class Dot, int R = kFewRows>
LinearTile<Dot, InRows<Dot>> transposed_tile_of(int rows) {
  if constexpr (R > 1) {
    if (rows < R) return transposed_tile_of<Dot, R - 1>(rows);
  }
  return transposed_tile<Dot, R>;
}

}  // namespace
}  // namespace accel_cpu
