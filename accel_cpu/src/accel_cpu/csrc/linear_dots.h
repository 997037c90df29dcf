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
#include "linear_slices.h"

namespace accel_cpu {
namespace {

constexpr int kDotColumns = 4;  // of a tile: as many as reduce4 takes

// sums[r][j] = from[r][j] + x[r] . w[j], of R rows and k in one chunk.
template <class X, class W, int R>
[[gnu::always_inline]] inline void dot_tile(LyingRows<typename X::Element> x,
                                            const typename W::Element* const (&w)[kDotColumns],
                                            int64_t k, TileStart from, TileSums to) {
  Vec acc[R * kDotColumns];
#pragma GCC unroll 24
  for (int j = 0; j < R * kDotColumns; ++j) acc[j] = zero();
  const auto step = [&](int64_t i, auto... n) {
    typename X::Operand a[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) a[r] = X::load_row(x.data + r * x.stride + i, n...);
#pragma GCC unroll 4
    for (int j = 0; j < kDotColumns; ++j) {
      const typename X::Operand b = W::load_row(w[j] + i, n...);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        acc[r * kDotColumns + j] = X::madd(a[r], b, acc[r * kDotColumns + j]);
      }
    }
  };
  // One row alone waits for memory, and the more so the fewer lines are under way.
  const int64_t whole = k / kBlock<X> * kBlock<X>;
  if constexpr (R == 1) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < whole; i += kBlock<X>) step(i);
  } else {
    for (int64_t i = 0; i < whole; i += kBlock<X>) step(i);
  }
  if (whole < k) step(whole, static_cast<int>(k - whole));
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

// Of so many columns, of which w has the rows, and of rows that R divides. What lies behind the
// last column up to the next multiple of four is written too.
template <class X, class W, int R>
void dot_tiles(LyingRows<typename X::Element> x, int64_t rows, LyingRows<typename W::Element> w,
               int64_t columns, int64_t k, TileStart from, TileSums to) {
  for (int64_t c = 0; c < columns; c += kDotColumns) {
    TileStart sums = from;
    int64_t done = 0;
    do {
      const int64_t size = smaller(k - done, kDotChunk<X>);
      const typename W::Element* lies[kDotColumns];
      for (int j = 0; j < kDotColumns; ++j) {
        lies[j] = w.data + smaller(c + j, columns - 1) * w.stride + done;
      }
      for (int64_t r = 0; r < rows; r += R) {
        const TileStart before = sums.data
                                     ? TileStart(sums.data + r * sums.stride + c, sums.stride)
                                     : TileStart();
        dot_tile<X, W, R>({x.data + r * x.stride + done, x.stride}, lies, size, before,
                          {to.data + r * to.stride + c, to.stride});
      }
      sums = to;
      done += size;
    } while (done < k);
  }
}

template <class X, class W>
using DotTiles = void (*)(LyingRows<typename X::Element>, int64_t rows,
                          LyingRows<typename W::Element>, int64_t columns, int64_t k, TileStart,
                          TileSums);

// Those for 1 to kDotRows rows in a tile.
template <class X, class W, int R = kDotRows>
DotTiles<X, W> dot_tiles_of(int64_t rows) {
  if constexpr (R > 1) {
    if (rows < R) return dot_tiles_of<X, W, R - 1>(rows);
  }
  return dot_tiles<X, W, R>;
}

// How many rows a tile takes: a number that divides them, if one does that keeps the arithmetic
// busy.
inline int dot_rows(int64_t rows) {
  for (int R = kDotRows; R > kDotRows / 2; --R) {
    if (rows % R == 0) return R;
  }
  return tile_rows(rows, kDotRows);
}

// Of any rows.
template <class X, class W>
void dots(LyingRows<typename X::Element> x, int64_t rows, LyingRows<typename W::Element> w,
          int64_t columns, int64_t k, TileStart from, TileSums to) {
  const int64_t R = dot_rows(rows), whole = rows - rows % R;
  dot_tiles_of<X, W>(R)(x, whole, w, columns, k, from, to);
  if (whole == rows) return;
  const TileStart before =
      from.data ? TileStart(from.data + whole * from.stride, from.stride) : TileStart();
  dot_tiles_of<X, W>(rows - whole)({x.data + whole * x.stride, x.stride}, rows - whole, w, columns,
                                   k, before, {to.data + whole * to.stride, to.stride});
}

// Rows of x as they lie, or packed.
template <class X, class T>
struct RowsOfX {
  const Matrix& x;
  typename X::Element* scratch;
  static constexpr bool kSame = __is_same(T, typename X::Element);

  bool lie() const { return kSame && !x.by_columns; }
  LyingRows<typename X::Element> at(int64_t m, int64_t m1, int64_t k0, int64_t k) const {
    if constexpr (kSame) {
      if (!x.by_columns) return rows_at<T>(x, m, k0);
    }
    return packed_rows<X, T>(x, m, m1, k0, k, scratch);
  }
};

// Few rows of x, by a w that is read as it lies: once, four of its rows at a time.
template <class X, class W, class T>
void dots_as_it_lies(const RowsOfX<X, T>& x, const Matrix& w, int64_t k, const Results& results) {
  const Block& block = results.block;
  const int64_t rows = block.m1 - block.m0;
  const int64_t packed = kStagedRows / rows * kDotChunk<X>;
  const int64_t most = x.lie() ? round_to_chunks<X>(k) : packed;
  for_slices(block, results.scratch, k, kDotChunk<X>, most, [&](const Slice& slice) {
    const auto from_x = x.at(block.m0, block.m1, slice.k0, slice.size);
    for_columns(block, block.m0, block.m1, kDotTile, [&](const Block& tile) {
      const auto from_w = rows_at<typename W::Element>(w, tile.n0, slice.k0);
      const auto run = [&](TileStart from, TileSums to) {
        dots<X, W>(from_x, rows, from_w, tile.n1 - tile.n0, slice.size, from, to);
      };
      sum_tile(slice, tile, static_cast<int>(rows), kDotTile, run, results);
    });
  });
}

// Few rows of x, by parts of w that are packed first.
template <class X, class W, class T>
void dots_of_few(const RowsOfX<X, T>& x, const Matrix& w, int64_t k, const Results& results) {
  const Block& block = results.block;
  const int64_t rows = block.m1 - block.m0;
  auto* panel = static_cast<typename X::Element*>(results.scratch.w);
  for_slices(block, results.scratch, k, kDotChunk<X>, kDotChunk<X>, [&](const Slice& slice) {
    const auto from_x = x.at(block.m0, block.m1, slice.k0, slice.size);
    for_columns(block, block.m0, block.m1, kPackedColumns, [&](const Block& part) {
      const auto packed = packed_rows<X, typename W::Element>(w, part.n0, part.n1, slice.k0,
                                                              slice.size, panel);
      for_columns(part, block.m0, block.m1, kDotTile, [&](const Block& tile) {
        const LyingRows<typename X::Element> from_w = {
            packed.data + (tile.n0 - part.n0) * packed.stride, packed.stride};
        const auto run = [&](TileStart from, TileSums to) {
          dots<X, X>(from_x, rows, from_w, tile.n1 - tile.n0, slice.size, from, to);
        };
        sum_tile(slice, tile, static_cast<int>(rows), kDotTile, run, results);
      });
    });
  });
}

// Rows of w for a slice of k: as they lie if they are read so and near each other, else packed. Of
// far ones the lines of a slice would meet in a few sets of L2.
template <class X, class W>
LyingRows<typename X::Element> near_rows(const Matrix& w, int64_t n, int64_t n1, int64_t k0,
                                         int64_t k, typename X::Element* out) {
  if constexpr (__is_same(X, W)) {
    if (!w.by_columns && w.stride <= kDotChunk<X>) return rows_at<typename X::Element>(w, n, k0);
  }
  return packed_rows<X, typename W::Element>(w, n, n1, k0, k, out);
}

// Many rows of x: w is packed once, and a few rows at a time stay in L1 while all of it passes by.
template <class X, class W, class T>
void dots_of_many(const RowsOfX<X, T>& x, const Matrix& w, int64_t k, const Results& results) {
  const Block& block = results.block;
  const int64_t rows = block.m1 - block.m0, together = x.lie() ? rows : kStagedRows;
  constexpr int R = kDotRows;
  auto* panel = static_cast<typename X::Element*>(results.scratch.w);
  for_slices(block, results.scratch, k, kDotChunk<X>, kDotChunk<X>, [&](const Slice& slice) {
    const int64_t k0 = slice.k0, size = slice.size;
    const auto packed = near_rows<X, W>(w, block.n0, block.n1, k0, size, panel);
    for (int64_t m = block.m0; m < block.m1; m += together) {
      const int64_t end = smaller(m + together, block.m1);
      const auto from_x = x.at(m, end, k0, size);
      for (int64_t r = m; r < end; r += R) {
        const int64_t r1 = smaller(r + R, end);
        const LyingRows<typename X::Element> of_tile = {from_x.data + (r - m) * from_x.stride,
                                                        from_x.stride};
        for_columns(block, r, r1, kDotTile, [&](const Block& tile) {
          const LyingRows<typename X::Element> from_w = {
              packed.data + (tile.n0 - block.n0) * packed.stride, packed.stride};
          const auto run = [&](TileStart from, TileSums to) {
            dots<X, X>(of_tile, r1 - r, from_w, tile.n1 - tile.n0, size, from, to);
          };
          sum_tile(slice, tile, static_cast<int>(r1 - r), kDotTile, run, results);
        });
      }
    }
  });
}

// The sums of x w^T, x of T, for each tile of the block.
template <class W, class T>
void dot_product(const Matrix& x, const Matrix& w, int64_t k, const Results& results) {
  using X = typename W::Arithmetic::Rows;
  const int64_t rows = results.block.m1 - results.block.m0;
  const RowsOfX<X, T> from = {x, static_cast<typename X::Element*>(results.scratch.x)};
  if (rows > kStagedRows) return dots_of_many<X, W, T>(from, w, k, results);
  const bool as_it_lies = __is_same(X, W) || rows <= kDotRows;
  if (!w.by_columns && as_it_lies) return dots_as_it_lies<X, W, T>(from, w, k, results);
  dots_of_few<X, W, T>(from, w, k, results);
}

}  // namespace
}  // namespace accel_cpu
