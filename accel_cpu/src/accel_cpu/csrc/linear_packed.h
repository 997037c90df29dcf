// A part of linear or lora_linear on one thread where w lies by columns and many rows of x go
// through it, written over the vectors of the vec_*.h included before it.
//
// Every output is summed in the order of linear_columns.h, bit for bit: kColumnChunk consecutive k
// one after the other, then chunk after chunk. What differs is where the operands wait. A panel of
// w, one tile wide and kPackedDepth deep, is copied together once and stays in L1 while tile after
// tile of x passes by; x is copied together likewise and stays in L2. A row's sums wait in memory
// for the next kPackedDepth of k.
#pragma once

#include "linear_columns.h"

namespace accel_cpu {
namespace {

constexpr int kPackedVectors = 2;
constexpr int kPackedTileRows = kAccumulators / kPackedVectors;
constexpr int kPackedTileColumns = kPackedVectors * kLanes;

static_assert(kPackedTileRows <= kMaxPackedTileRows && kPackedTileColumns <= kMaxPackedTileColumns);

// What a step over kPackedDepth of k takes of a tile's columns of w, and of its rows of x.
template <class Dot>
using Panel = typename Dot::Operand[kPackedDepth / Dot::kDepth][kPackedVectors];
template <class Dot>
using PackedRows = typename Dot::Staged[kPackedTileRows][kPackedDepth / Dot::kDepth];

// The sums of a tile: [rows, columns] of this stride.
struct TileSums {
  float* data;
  int64_t stride;
};

// to[r][j] = from[r][j] + x[r] . w[.., j] for the rows and columns of a tile, over k; without data
// `from` is zero.
template <class Dot>
void packed_tile(const PackedRows<Dot>& x, const Panel<Dot>& w, int64_t k, TileSums from,
                 TileSums to) {
  constexpr int R = kPackedTileRows, C = kPackedVectors;
  constexpr int64_t kSteps = kColumnChunk / Dot::kDepth;
  const int64_t steps = (k + Dot::kDepth - 1) / Dot::kDepth;
  for (int r = 0; r < R; ++r) __builtin_prefetch(to.data + r * to.stride);
  int64_t i = 0;
  do {
    Vec acc[R * C];
#pragma GCC unroll 24
    for (int j = 0; j < R * C; ++j) acc[j] = zero();
    const auto step = [&] {
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r) {
        const typename Dot::Operand a = Dot::spread(x[r][i]);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) acc[r * C + c] = Dot::madd(a, w[i][c], acc[r * C + c]);
      }
      ++i;
    };
    if (steps - i >= kSteps) {
#pragma GCC unroll 4
      for (int64_t n = 0; n < kSteps; ++n) step();
    } else {
      while (i < steps) step();
    }
#pragma GCC unroll 24
    for (int j = 0; j < R * C; ++j) {
      const int row = j / C, column = j % C * kLanes;
      const Vec sum = from.data ? load(from.data + row * from.stride + column) : zero();
      store(to.data + row * to.stride + column, add(sum, acc[j]));
    }
    from = to;
  } while (i < steps);
}

// Copies columns [n, n + kPackedTileColumns) of w together, zeros past the last, n1.
template <class Dot>
void pack_panel(const Matrix& w, int64_t n, int64_t n1, int64_t k0, int64_t k,
                Panel<Dot>& out) {
  constexpr int kDepth = Dot::kDepth;
  const auto* from = static_cast<const typename Dot::Element*>(w.data) + k0 * w.stride + n;
  const auto copy = [&](auto depth, int64_t i) {
    const auto* row = from + i * kDepth * w.stride;
    for (int c = 0; c < kPackedVectors; ++c) {
      const int64_t left = n1 - n - c * kLanes;
      if (left >= kLanes) {
        out[i][c] = Dot::load_rows(depth, row + c * kLanes, w.stride);
      } else {
        out[i][c] = Dot::load_rows(depth, row + c * kLanes, w.stride,
                                   static_cast<int>(left > 0 ? left : 0));
      }
    }
  };
  const int64_t whole = k / kDepth;
  for (int64_t i = 0; i < whole; ++i) copy(Depth<kDepth>{}, i);
  if constexpr (kDepth > 1) {
    if (k % kDepth) copy(Depth<1>{}, whole);
  }
}

// Copies rows [m, m + kPackedTileRows) of x together; past the last, m1, the tile repeats that row,
// and nothing reads those sums.
template <class Dot>
void pack_rows(const Matrix& x, int64_t m, int64_t m1, int64_t k0, int64_t k,
               PackedRows<Dot>& out) {
  using T = typename Dot::Element;
  const T* data = static_cast<const T*>(x.data);
  if (!x.by_columns) {
    for (int r = 0; r < kPackedTileRows; ++r) {
      const int64_t row = m + r < m1 ? m + r : m1 - 1;
      Dot::stage(data + row * x.stride + k0, k, out[r]);
    }
    return;
  }
  T rows[kPackedTileRows][kPackedDepth];
  const int left = m1 - m < kPackedTileRows ? static_cast<int>(m1 - m) : kPackedTileRows;
  for (int64_t i = 0; i < k; ++i) {
    const T* column = data + (k0 + i) * x.stride + m;
    for (int r = 0; r < kPackedTileRows; ++r) rows[r][i] = column[r < left ? r : left - 1];
  }
  for (int r = 0; r < kPackedTileRows; ++r) Dot::stage(rows[r], k, out[r]);
}

// From the sums of a whole tile to its results, where those take no more than a bias and an fp32
// partial sum. Of a product with K=512 the way through finish_row takes a tenth (fp32, Zen 3).
template <class T, class Out>
void finish_whole_tile(const LinearArgs& args, int64_t m, int64_t n, const float* sums) {
  const auto* bias = static_cast<const T*>(args.bias);
  const auto* partial = static_cast<const float*>(args.partial.data);
  for (int r = 0; r < kPackedTileRows; ++r) {
    for (int c = 0; c < kPackedVectors; ++c) {
      const int64_t column = n + c * kLanes;
      Vec sum = load(sums + r * kPackedTileColumns + c * kLanes);
      if (bias) sum = add(sum, load(bias + column));
      if (partial) sum = add(sum, load(partial + (m + r) * args.partial.stride + column));
      store(static_cast<Out*>(args.out) + (m + r) * args.out_stride + column, sum);
    }
  }
}

template <class T>
void finish_tile(const LinearArgs& args, const Block& tile, float* sums) {
  const bool whole =
      tile.m1 - tile.m0 == kPackedTileRows && tile.n1 - tile.n0 == kPackedTileColumns;
  const bool plain = args.act == Activation::none && !args.rank && !args.gated &&
                     (!args.partial.data || args.partial_dtype == DType::f32);
  if (!whole || !plain) return finish_block<T>(args, tile, sums, kPackedTileColumns);
  switch (args.out_dtype) {
    case DType::f32: return finish_whole_tile<T, float>(args, tile.m0, tile.n0, sums);
    case DType::bf16: return finish_whole_tile<T, bf16>(args, tile.m0, tile.n0, sums);
    case DType::f16: return finish_whole_tile<T, f16>(args, tile.m0, tile.n0, sums);
  }
}

template <class Dot>
void linear_packed(const LinearArgs& args, const Block& block, const PackedScratch& scratch) {
  constexpr int R = kPackedTileRows, C = kPackedTileColumns;
  const int64_t columns = block.n1 - block.n0, stride = scratch.sums_stride;
  auto* panels = static_cast<Panel<Dot>*>(scratch.w);
  auto* rows = static_cast<PackedRows<Dot>*>(scratch.x);
  const auto min = [](int64_t a, int64_t b) { return a < b ? a : b; };

  int64_t k0 = 0;
  do {  // once where k is 0
    const int64_t k = min(args.k - k0, kPackedDepth);
    const bool last = k0 + k == args.k;
    for (int64_t n = 0; n < columns; n += C) {
      pack_panel<Dot>(args.w, block.n0 + n, block.n1, k0, k, panels[n / C]);
    }
    for (int64_t m = block.m0; m < block.m1; m += kPackedRows) {
      const int64_t end = min(m + kPackedRows, block.m1);
      for (int64_t r = m; r < end; r += R) {
        pack_rows<Dot>(args.x, r, block.m1, k0, k, rows[(r - m) / R]);
      }
      for (int64_t n = 0; n < columns; n += C) {
        for (int64_t r = m; r < end; r += R) {
          TileSums kept = {scratch.sums + (r - block.m0) * stride + n, stride};
          const TileSums from = {k0 ? kept.data : nullptr, stride};
          float sums[R * C];
          const TileSums to = last ? TileSums{sums, C} : kept;
          packed_tile<Dot>(rows[(r - m) / R], panels[n / C], k, from, to);
          if (!last) continue;
          const Block tile = {r, min(r + R, end), block.n0 + n, min(block.n0 + n + C, block.n1)};
          finish_tile<typename Dot::Element>(args, tile, sums);
        }
      }
    }
    k0 += k;
  } while (k0 < args.k);
}

}  // namespace
}  // namespace accel_cpu
