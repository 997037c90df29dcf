// Products whose lanes are consecutive k, written over the vectors of the vec_*.h included before
// it: rows of x and rows of w are read as they lie, with nothing between them and memory. One row
// of x takes K=1024, N=4096 from memory at the rate at which a sum of as much is read, where
// blocks of w transposed in registers took 1.25 times as long; 512 rows take 0.97 of their time in
// fp32 and 0.94 in pairs of bf16 (two Zen 5 cores; with AVX2 one row 0.63, 512 rows 1.06).
//
// Every result is summed in one order, whatever is computed beside it and however x and w lie: of
// each chunk of k every lane sums its own, one vector after the other; then the lanes are added
// (reduce4), and chunk is added to chunk.
#pragma once

#include "linear_rows.h"
#include "linear_tile.h"

namespace accel_cpu {
namespace {

constexpr int kDotColumns = 4;  // of a tile: as many as reduce4 takes

// A row of w as it lies.
template <class W>
struct LyingRow {
  const typename W::Element* data;

  template <class... N>
  auto load(int64_t i, N... n) const {
    return W::load_row(data + i, n...);
  }
};

// What is asked for while a tile is multiplied: nothing, or the lines of two rows of w. Without them
// memory would wait for the multiplications: 8 rows of x take 0.5 and 16 rows 0.6 of the time in
// bf16, 0.75 and 0.9 in fp32 (K=1024, N=4096, two Zen 5 cores). Where w is in L2 it costs 1.05.
struct NothingAhead {
  void ask(int64_t) const {}
};
template <class W>
struct RowsAhead {
  LyingRow<W> rows[2];
  void ask(int64_t i) const {
    __builtin_prefetch(rows[0].data + i);
    __builtin_prefetch(rows[1].data + i);
  }
};

// sums[r][j] = from[r][j] + x[r] . w[j], of R rows and k in one chunk.
template <class X, int R, class W, class Ahead>
[[gnu::always_inline]] inline void dot_tile(LyingRows<typename X::Element> x,
                                            const LyingRow<W> (&w)[kDotColumns], Ahead ahead,
                                            int64_t k, TileStart from, TileSums to) {
  Vec acc[R * kDotColumns];
#pragma GCC unroll 24
  for (int j = 0; j < R * kDotColumns; ++j) acc[j] = zero();
  const auto step = [&](int64_t at, auto... n) {
    if constexpr (R > 2) ahead.ask(at);  // fewer wait for memory anyway
    typename X::Operand a[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) a[r] = X::load_row(x.data + r * x.stride + at, n...);
#pragma GCC unroll 4
    for (int j = 0; j < kDotColumns; ++j) {
      const typename X::Operand b = w[j].load(at, n...);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        acc[r * kDotColumns + j] = X::madd(a[r], b, acc[r * kDotColumns + j]);
      }
    }
  };
  const int64_t whole = k / kBlock<X> * kBlock<X>;
  int64_t i = 0;
  // One row alone waits for memory, and the more so the fewer lines are under way.
  if constexpr (R == 1) {
#pragma GCC unroll 4
    for (; i < whole; i += kBlock<X>) step(i);
  } else {
    for (; i < whole; i += kBlock<X>) step(i);
  }
  if (i < k) step(i, static_cast<int>(k - i));
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    float* sums = to.data + r * to.stride;
    if (from.data) {
      reduce4(acc + r * kDotColumns, from.data + r * from.stride, sums);
    } else {
      reduce4(acc + r * kDotColumns, sums);
    }
  }
}

// Rows of w as they lie, far away in memory or near in a cache: row(n, k0) is the n-th from k0 on.
template <class W, bool kFar>
struct WeightRows : LyingRows<typename W::Element> {
  static constexpr int kRows = kDotRows;  // of the tallest tile

  WeightRows from(int64_t n) const { return {{this->data + n * this->stride, this->stride}}; }
  LyingRow<W> row(int64_t n, int64_t k0) const { return {this->data + n * this->stride + k0}; }
  // For the t-th of so many tiles beside the columns before n. Together they ask for the next four
  // rows, the last first, as the processor sees the first ones coming. An address past the last row
  // is harmless.
  auto ahead(int64_t n, int64_t k0, int64_t t, int64_t tiles) const {
    if constexpr (kFar) {
      const auto at = [&](int64_t i) {
        return row(n + kDotColumns - 1 - smaller(i, kDotColumns - 1), k0);
      };
      return RowsAhead<W>{{at(t), at(t + tiles)}};
    } else {
      return NothingAhead();
    }
  }
};

// Of so many columns, the first rows of w, and of rows that R divides. What lies behind the last
// column up to the next multiple of four is written too.
template <class X, class Weight, int R>
void dot_tiles(LyingRows<typename X::Element> x, int64_t rows, const Weight& w, int64_t columns,
               int64_t k, TileStart from, TileSums to) {
  for (int64_t c = 0; c < columns; c += kDotColumns) {
    TileStart sums = from;
    int64_t done = 0;
    do {
      const int64_t size = smaller(k - done, kDotChunk<X>);
      const auto row = [&](int j) { return w.row(smaller(c + j, columns - 1), done); };
      const decltype(row(0)) lies[kDotColumns] = {row(0), row(1), row(2), row(3)};
      for (int64_t r = 0; r < rows; r += R) {
        const TileStart before = sums.data
                                     ? TileStart(sums.data + r * sums.stride + c, sums.stride)
                                     : TileStart();
        dot_tile<X, R>({x.data + r * x.stride + done, x.stride}, lies,
                       w.ahead(c + kDotColumns, done, r / R, rows / R), size, before,
                       {to.data + r * to.stride + c, to.stride});
      }
      sums = to;
      done += size;
    } while (done < k);
  }
}

template <class X, class Weight>
using DotTiles = void (*)(LyingRows<typename X::Element>, int64_t rows, const Weight&,
                          int64_t columns, int64_t k, TileStart, TileSums);

// Those for 1 to R rows in a tile.
template <class X, class Weight, int R = Weight::kRows>
DotTiles<X, Weight> dot_tiles_of(int64_t rows) {
  if constexpr (R > 1) {
    if (rows < R) return dot_tiles_of<X, Weight, R - 1>(rows);
  }
  return dot_tiles<X, Weight, R>;
}

// How many rows a tile takes: a number that divides them, if one does that keeps the arithmetic
// busy.
template <int kMost>
int dot_rows(int64_t rows) {
  for (int R = kMost; R > kMost / 2; --R) {
    if (rows % R == 0) return R;
  }
  return tile_rows(rows, kMost);
}

// Of any rows.
template <class X, class Weight>
void dots(LyingRows<typename X::Element> x, int64_t rows, const Weight& w, int64_t columns,
          int64_t k, TileStart from, TileSums to) {
  const int64_t R = dot_rows<Weight::kRows>(rows), whole = rows - rows % R;
  dot_tiles_of<X, Weight>(R)(x, whole, w, columns, k, from, to);
  if (whole == rows) return;
  const TileStart before =
      from.data ? TileStart(from.data + whole * from.stride, from.stride) : TileStart();
  dot_tiles_of<X, Weight>(rows - whole)({x.data + whole * x.stride, x.stride}, rows - whole, w,
                                        columns, k, before,
                                        {to.data + whole * to.stride, to.stride});
}

}  // namespace
}  // namespace accel_cpu
