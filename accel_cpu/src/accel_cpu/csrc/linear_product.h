// A part of a product whose lanes are consecutive k, on one thread: which operands lie so that they
// are read where they are, and which are packed. Written over the vectors of the vec_*.h included
// before it.
#pragma once

#include "linear_dots.h"
#include "linear_slices.h"

namespace accel_cpu {
namespace {

// Rows of x, of T, as they lie or packed.
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

// A weight of W::Element.
template <class X, class W>
struct PlainWeight {
  const Matrix& w;
  static constexpr int64_t kPacked = kPackedColumns;  // together, for few rows
  static constexpr bool kSame = __is_same(X, W);

  // Whether so many rows of x take it as it lies. What is widened for many is packed.
  bool lies(int64_t rows) const { return !w.by_columns && (kSame || rows <= kDotRows); }
  WeightRows<W, true> at(int64_t n, int64_t k0) const {
    return {rows_at<typename W::Element>(w, n, k0)};
  }
  // A slice of rows [n, n1), as they lie if they lie near each other. Of far ones the lines of a
  // slice would meet in a few sets of L2.
  WeightRows<X, false> near(int64_t n, int64_t n1, int64_t k0, int64_t k,
                            typename X::Element* out) const {
    if constexpr (kSame) {
      if (!w.by_columns && w.stride <= kDotChunk<X>) {
        return {rows_at<typename X::Element>(w, n, k0)};
      }
    }
    return {packed_rows<X, typename W::Element>(w, n, n1, k0, k, out)};
  }
};

// Few rows of x, by a w that is read as it lies: once, four of its rows at a time.
template <class X, class T, class Weight>
void dots_as_it_lies(const RowsOfX<X, T>& x, const Weight& w, int64_t k, const Results& results) {
  const Block& block = results.block;
  const int64_t rows = block.m1 - block.m0;
  const int64_t packed = kStagedRows / rows * kDotChunk<X>;
  const int64_t most = x.lie() ? round_to_chunks<X>(k) : packed;
  for_slices(block, results.scratch, k, kDotChunk<X>, most, [&](const Slice& slice) {
    const auto from_x = x.at(block.m0, block.m1, slice.k0, slice.size);
    for_columns(block, block.m0, block.m1, kDotTile, [&](const Block& tile) {
      const auto from_w = w.at(tile.n0, slice.k0);
      const auto run = [&](TileStart from, TileSums to) {
        dots<X>(from_x, rows, from_w, tile.n1 - tile.n0, slice.size, from, to);
      };
      sum_tile(slice, tile, static_cast<int>(rows), kDotTile, run, results);
    });
  });
}

// Rows [m, m1) of x, from_x, by rows of w from column `first` on, in a slice of k.
template <class X, class Rows>
void dots_of_columns(LyingRows<typename X::Element> from_x, int64_t rows, const Rows& w,
                     int64_t first, const Block& block, const Slice& slice,
                     const Results& results) {
  for_columns(block, block.m0, block.m1, kDotTile, [&](const Block& tile) {
    const Rows from_w = w.from(tile.n0 - first);
    const auto run = [&](TileStart from, TileSums to) {
      dots<X>(from_x, rows, from_w, tile.n1 - tile.n0, slice.size, from, to);
    };
    sum_tile(slice, tile, static_cast<int>(rows), kDotTile, run, results);
  });
}

// Few rows of x, by parts of w that are packed first.
template <class X, class T, class Weight>
void dots_of_few(const RowsOfX<X, T>& x, const Weight& w, int64_t k, const Results& results) {
  const Block& block = results.block;
  const int64_t rows = block.m1 - block.m0;
  auto* panel = static_cast<typename X::Element*>(results.scratch.w);
  for_slices(block, results.scratch, k, kDotChunk<X>, kDotChunk<X>, [&](const Slice& slice) {
    const auto from_x = x.at(block.m0, block.m1, slice.k0, slice.size);
    for_columns(block, block.m0, block.m1, Weight::kPacked, [&](const Block& part) {
      const auto packed = w.near(part.n0, part.n1, slice.k0, slice.size, panel);
      dots_of_columns<X>(from_x, rows, packed, part.n0, part, slice, results);
    });
  });
}

// Many rows of x: w is packed once, and a few rows at a time stay in L1 while all of it passes by.
template <class X, class T, class Weight>
void dots_of_many(const RowsOfX<X, T>& x, const Weight& w, int64_t k, const Results& results) {
  const Block& block = results.block;
  const int64_t together = x.lie() ? block.m1 - block.m0 : kStagedRows;
  auto* panel = static_cast<typename X::Element*>(results.scratch.w);
  for_slices(block, results.scratch, k, kDotChunk<X>, kDotChunk<X>, [&](const Slice& slice) {
    const auto packed = w.near(block.n0, block.n1, slice.k0, slice.size, panel);
    for (int64_t m = block.m0; m < block.m1; m += together) {
      const int64_t end = smaller(m + together, block.m1);
      const auto staged = x.at(m, end, slice.k0, slice.size);
      for (int64_t r = m; r < end; r += kDotRows) {
        const int64_t r1 = smaller(r + kDotRows, end);
        dots_of_columns<X>({staged.data + (r - m) * staged.stride, staged.stride}, r1 - r, packed,
                           block.n0, {r, r1, block.n0, block.n1}, slice, results);
      }
    }
  });
}

// The sums of x w^T, x of T, for each tile of the block.
template <class X, class T, class Weight>
void dot_product(const Matrix& x, const Weight& w, int64_t k, const Results& results) {
  const int64_t rows = results.block.m1 - results.block.m0;
  const RowsOfX<X, T> from = {x, static_cast<typename X::Element*>(results.scratch.x)};
  if (rows > kStagedRows) return dots_of_many<X, T>(from, w, k, results);
  if (w.lies(rows)) return dots_as_it_lies<X, T>(from, w, k, results);
  dots_of_few<X, T>(from, w, k, results);
}

}  // namespace
}  // namespace accel_cpu
