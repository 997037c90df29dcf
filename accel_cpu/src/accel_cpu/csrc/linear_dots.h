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

// Where x has to come from L2, half as many rows beside twice as many columns ask for half as much
// of it. 17 to 72 rows of x take 0.87 to 0.91 of the time in pairs of bf16 (K=1024, N=2816, two
// Zen 5 cores); in fp32, of which twice as much of w has to stay in L1, 1.05.
constexpr int kWideColumns = 2 * kDotColumns;
template <class X>
constexpr bool kHasWide = kDotRows >= 6 && sizeof(typename X::Element) == 2;
constexpr int64_t kNearBytes = 1 << 15;  // of x: these stay in L1

// A row of w as it lies.
template <class W>
struct LyingRow {
  const typename W::Element* data;

  template <class... N>
  auto load(int64_t i, N... n) const {
    return W::load_row(data + i, n...);
  }
};

// What is asked for while a tile is multiplied: nothing, or the lines of some rows of w. Without
// them memory would wait for the multiplications: 8 rows of x take 0.5 and 16 rows 0.6 of the time
// in bf16, 0.75 and 0.9 in fp32 (K=1024, N=4096, two Zen 5 cores). Where w is in L2 it costs 1.05.
struct NothingAhead {
  void ask(int64_t) const {}
};
template <class W, int kRows>
struct RowsAhead {
  LyingRow<W> rows[kRows];
  void ask(int64_t i) const {
#pragma GCC unroll 2
    for (int j = 0; j < kRows; ++j) __builtin_prefetch(rows[j].data + i);
  }
};

// sums[r][j] = from[r][j] + x[r] . w[j], of R rows and k in one chunk.
template <class X, int R, int C, class W, class Ahead>
[[gnu::always_inline]] inline void dot_tile(LyingRows<typename X::Element> x,
                                            const LyingRow<W> (&w)[C], Ahead ahead, int64_t k,
                                            TileStart from, TileSums to) {
  Vec acc[R * C];
#pragma GCC unroll 24
  for (int j = 0; j < R * C; ++j) acc[j] = zero();
  const auto step = [&](int64_t at, auto... n) {
    if constexpr (R > 2) ahead.ask(at);  // fewer wait for memory anyway
    typename X::Operand a[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) a[r] = X::load_row(x.data + r * x.stride + at, n...);
#pragma GCC unroll 8
    for (int j = 0; j < C; ++j) {
      const typename X::Operand b = w[j].load(at, n...);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) acc[r * C + j] = X::madd(a[r], b, acc[r * C + j]);
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
#pragma GCC unroll 2
    for (int j = 0; j < C; j += 4) {
      float* sums = to.data + r * to.stride + j;
      if (from.data) {
        reduce4(acc + r * C + j, from.data + r * from.stride + j, sums);
      } else {
        reduce4(acc + r * C + j, sums);
      }
    }
  }
}

// Rows of w as they lie, far away in memory or near in a cache: row(n, k0) is the n-th from k0 on.
template <class W, bool kFar>
struct WeightRows : LyingRows<typename W::Element> {
  static constexpr int kRows = kDotRows;  // of the tallest tile
  static constexpr bool kWide = kFar && kHasWide<W>;

  WeightRows from(int64_t n) const { return {{this->data + n * this->stride, this->stride}}; }
  LyingRow<W> row(int64_t n, int64_t k0) const { return {this->data + n * this->stride + k0}; }
  // For the t-th of so many tiles beside the C columns before n. Together they ask for the next C
  // rows, the last first, as the processor sees the first ones coming: of wide tiles, which are
  // more, one each (0.95 to 0.99 of the time of two). An address past the last row is harmless.
  template <int C>
  auto ahead(int64_t n, int64_t k0, int64_t t, int64_t tiles) const {
    if constexpr (kFar) {
      const auto at = [&](int64_t i) { return row(n + C - 1 - smaller(i, C - 1), k0); };
      if constexpr (C == kWideColumns) {
        return RowsAhead<W, 1>{{at(t)}};
      } else {
        return RowsAhead<W, 2>{{at(t), at(t + tiles)}};
      }
    } else {
      return NothingAhead();
    }
  }
};

// Of so many columns, the first rows of w, and of rows that R divides. What lies behind the last
// column up to the next multiple of C is written too.
template <class X, class Weight, int R, int C>
void dot_tiles(LyingRows<typename X::Element> x, int64_t rows, const Weight& w, int64_t columns,
               int64_t k, TileStart from, TileSums to) {
  for (int64_t c = 0; c < columns; c += C) {
    TileStart sums = from;
    int64_t done = 0;
    do {
      const int64_t size = smaller(k - done, kDotChunk<X>);
      decltype(w.row(0, done)) lies[C];
      for (int j = 0; j < C; ++j) lies[j] = w.row(smaller(c + j, columns - 1), done);
      for (int64_t r = 0; r < rows; r += R) {
        const TileStart before = sums.data
                                     ? TileStart(sums.data + r * sums.stride + c, sums.stride)
                                     : TileStart();
        dot_tile<X, R>({x.data + r * x.stride + done, x.stride}, lies,
                       w.template ahead<C>(c + C, done, r / R, rows / R), size, before,
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
template <class X, class Weight, int R = Weight::kRows, int C = kDotColumns>
DotTiles<X, Weight> dot_tiles_of(int64_t rows) {
  if constexpr (R > 1) {
    if (rows < R) return dot_tiles_of<X, Weight, R - 1, C>(rows);
  }
  return dot_tiles<X, Weight, R, C>;
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

// By tiles of R rows, and of what is left of rows.
template <class X, class Weight, int kMost, int C>
void dots_by(int R, LyingRows<typename X::Element> x, int64_t rows, const Weight& w,
             int64_t columns, int64_t k, TileStart from, TileSums to) {
  const int64_t whole = rows - rows % R;
  dot_tiles_of<X, Weight, kMost, C>(R)(x, whole, w, columns, k, from, to);
  if (whole == rows) return;
  const TileStart before =
      from.data ? TileStart(from.data + whole * from.stride, from.stride) : TileStart();
  dot_tiles_of<X, Weight, kMost, C>(rows - whole)(
      {x.data + whole * x.stride, x.stride}, rows - whole, w, columns, k, before,
      {to.data + whole * to.stride, to.stride});
}

// Of any rows.
template <class X, class Weight>
void dots(LyingRows<typename X::Element> x, int64_t rows, const Weight& w, int64_t columns,
          int64_t k, TileStart from, TileSums to) {
  if constexpr (Weight::kWide) {
    constexpr int R = Weight::kRows / 2, C = kWideColumns;
    const int64_t row = smaller(k, kDotChunk<X>) * sizeof(typename X::Element);
    if (rows * row > kNearBytes) {
      for (int64_t c = 0; c < columns; c += C) {
        const TileStart before = from.data ? TileStart(from.data + c, from.stride) : TileStart();
        dots_by<X, Weight, R, C>(R, x, rows, w.from(c), smaller(columns - c, C), k, before,
                                 {to.data + c, to.stride});
      }
      return;
    }
  }
  dots_by<X, Weight, Weight::kRows, kDotColumns>(dot_rows<Weight::kRows>(rows), x, rows, w, columns,
                                                 k, from, to);
}

}  // namespace
}  // namespace accel_cpu
