// The innermost part of a product whose lanes are columns: a tile of results, some rows of x by
// some vectors of columns of w, summed over k.
//
// Every result is summed in one order, whatever is computed beside it and however w lies: kChunk
// consecutive k one after the other (in pairs where an instruction multiplies pairs), then chunk
// after chunk. So a result depends on its own row of x and its own column of w alone, bit for bit.
// (Of the same kind is the order of amx_tile.h.)
// In one chain a sum over K=4096 would be wrong by 1.1e-6 of the result's RMS, in chunks it is by
// 2.2e-7 (fp32).
#pragma once

#include "weight_panel.h"

namespace accel_cpu {
namespace {

static_assert(kTileRows <= kMaxTileRows);

// How wide a tile of these rows is: as many accumulators as the registers hold, or fewer rows
// would wait for each addition's end.
constexpr int tile_vectors(int rows) {
  int vectors = static_cast<int>(kTileColumns) / kLanes;
  while (rows * vectors > kAccumulators || vectors > 8) vectors /= 2;
  return vectors;
}

// How rows are cut into tiles: evenly, as the last tile takes as long as the others.
constexpr int tile_rows(int64_t rows, int64_t most = kTileRows) {
  const int64_t tiles = (rows + most - 1) / most;
  return static_cast<int>((rows + tiles - 1) / tiles);
}

// The sums of a tile: [rows, columns] of this stride.
struct TileSums {
  float* data;
  int64_t stride;
};

// The sums that a tile's are added to, likewise; without data, zeros.
struct TileStart {
  const float* data = nullptr;
  int64_t stride = 0;
  TileStart() = default;
  TileStart(const float* data, int64_t stride) : data(data), stride(stride) {}
  TileStart(TileSums sums) : data(sums.data), stride(sums.stride) {}
};

// Where a tile of C vectors finds w: a panel as read_panel leaves it.
template <class Dot>
struct InPanel {
  const typename Dot::Operand* panel;
  template <int C>
  typename Dot::Operand at(int64_t step, int c) const {
    return panel[step * C + c];
  }
  template <int C>
  void prefetch(int64_t) const {}
};

// to[r][j] = from[r][j] + x[r] . w[.., j], from and to apart or the same. x is as stage_rows leaves
// it.
template <class Dot, int R, class W>
void linear_tile(const typename Dot::Staged* x, W w, int64_t steps, TileStart from, TileSums to) {
  constexpr int C = tile_vectors(R);
  for (int r = 0; r < R; ++r) __builtin_prefetch(to.data + r * to.stride);
  int64_t done = 0;
  do {
    // Unrolled by request, or GCC keeps the accumulators of the larger tiles in memory.
    Vec acc[R * C];
#pragma GCC unroll 24
    for (int j = 0; j < R * C; ++j) acc[j] = zero();
    const auto step = [&](int64_t i) {
      w.template prefetch<C>(done + i);
      typename Dot::Operand b[C];
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) b[c] = w.template at<C>(done + i, c);
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r) {
        const typename Dot::Operand a = Dot::spread(x[r * kChunkSteps<Dot> + i]);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) acc[r * C + c] = Dot::madd(a, b[c], acc[r * C + c]);
      }
    };
    if (steps - done >= kChunkSteps<Dot>) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kChunkSteps<Dot>; ++i) step(i);
    } else {
      for (int64_t i = 0; i < steps - done; ++i) step(i);
    }
#pragma GCC unroll 24
    for (int j = 0; j < R * C; ++j) {
      const int row = j / C, column = j % C * kLanes;
      const Vec sum = from.data ? load(from.data + row * from.stride + column) : zero();
      store(to.data + row * to.stride + column, add(sum, acc[j]));
    }
    from = to;
    x += R * kChunkSteps<Dot>;
    done += kChunkSteps<Dot>;
  } while (done < steps);
}

template <class Dot, class W = InPanel<Dot>>
using LinearTile = void (*)(const typename Dot::Staged*, W, int64_t, TileStart, TileSums);

// The tile for 1 to R rows.
template <class Dot, class W = InPanel<Dot>, int R = kTileRows>
LinearTile<Dot, W> linear_tile_of(int rows) {
  if constexpr (R > 1) {
    if (rows < R) return linear_tile_of<Dot, W, R - 1>(rows);
  }
  return linear_tile<Dot, R, W>;
}

// The tiles that many rows of x are cut into: here of vectors.
template <class Dot>
struct Tiles {
  // The most k at a time: half precisions in pairs take half the room. 2048 rows by 4096 columns of
  // K=1024 take 0.87 of the time they take in slices of 512 (bf16, two Zen 5 cores).
  static constexpr int64_t kSlice = kMaxSlice * Dot::kDepth;
  static int rows(int64_t rows) { return tile_rows(rows); }
  static int vectors(int rows) { return tile_vectors(rows); }
  template <class W>
  static auto of(int rows) {
    return linear_tile_of<typename Dot::Arithmetic, W>(rows);
  }
};

}  // namespace
}  // namespace accel_cpu
