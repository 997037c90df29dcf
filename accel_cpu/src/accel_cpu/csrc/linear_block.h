// One block of linear, gated_linear or lora_linear on one thread, written over the vectors of the
// vec_*.h included before it.
//
// Every output is summed in one order, whatever is computed beside it: lane l of its one
// accumulator takes k = l, l + lanes, l + 2 lanes, ... (pairs of k where an instruction multiplies
// pairs), the last step is padded with zeros, and reduce4's tree adds the lanes. So an output
// depends on its own rows of x and w alone, bit for bit. Tiles only decide which outputs are under
// way together.
#pragma once

#include <cstddef>

#include "elementwise.h"
#include "kernels.h"

namespace accel_cpu {
namespace {

// How a dot product reads its operands, rows of x and rows of w. This one widens them to fp32 as it
// loads.
template <class T, class X = T>
struct Widened {
  using Element = T;
  using XElement = X;
  using Operand = Vec;
  static constexpr int kStep = kLanes;
  template <class E, class... N>
  static Operand load(const E* p, N... n) {
    return accel_cpu::load(p, n...);
  }
  static Vec madd(Operand a, Operand b, Vec acc) { return accel_cpu::madd(a, b, acc); }
};

constexpr int kMaxTileRows = kAccumulators / 4;
constexpr int tile_columns(int rows) { return 8 * rows <= kAccumulators ? 8 : 4; }

// The fp32 results of one matrix for the rows of a tile, waiting for bias, activation and rounding.
using Sums = float[kMaxTileRows][kMaxBlockColumns];

// Many rows of x go through w a panel at a time, and through k a chunk at a time: what a panel and a
// tile of w have of a chunk stays in L1, and w comes from further away once a panel instead of once
// a tile. The accumulators wait in memory for the next chunk, as they are: the order of the sums is
// that of one pass. From 63 to 40 ms (fp32, M=512, K=1024, N=4096, two threads of a Zen 3 core).
constexpr int kPanelTiles = 12 / kMaxTileRows;
constexpr int kPanelRows = kPanelTiles * kMaxTileRows;
constexpr int64_t kChunk = 256;  // of k, a multiple of every step

// Of one tile of rows the accumulators of a block's columns.
using Kept = Vec[kMaxTileRows * kMaxBlockColumns];

// A part of k, and where the accumulators come from and go to: `kept` is null where k is whole.
struct Part {
  int64_t start, size;
  Vec* kept;
  bool first, last;
};

// out[r][column + c] = x[r] . w[c] for R rows of x and C rows of w. `ahead` is the distance to the
// rows of w the next tile reads. Prefetching them into L2 lifts what a small M gets from memory, at
// M=4 from 27 to 41 GB/s (fp32, K=1024, N=4096, two Zen 4 cores that can read 52); into L1 it gains
// nothing. An address past the end of w is harmless.
template <class Dot, bool kAhead, int R, int C>
void dot_tile(const typename Dot::XElement* const (&x)[R],
              const typename Dot::Element* const (&w)[C], ptrdiff_t ahead, const Part& part,
              Sums& out, int64_t column) {
  static_assert(C % 4 == 0, "reduce4 takes four columns");
  // Unrolled by request, or GCC keeps the accumulators of the larger tiles in memory.
  Vec acc[R * C];
#pragma GCC unroll 24
  for (int j = 0; j < R * C; ++j) acc[j] = part.first ? zero() : part.kept[j];

  const auto step = [&](int64_t i, auto... n) {
    typename Dot::Operand a[R];
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) a[r] = Dot::load(x[r] + i, n...);
#pragma GCC unroll 24
    for (int c = 0; c < C; ++c) {
      if constexpr (kAhead) __builtin_prefetch(w[c] + i + ahead, 0, 2);
      const typename Dot::Operand b = Dot::load(w[c] + i, n...);
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r) acc[r * C + c] = Dot::madd(a[r], b, acc[r * C + c]);
    }
  };
  int64_t i = 0;
  for (; i + Dot::kStep <= part.size; i += Dot::kStep) step(i);
  if (i < part.size) step(i, static_cast<int>(part.size - i));

  if (!part.last) {
#pragma GCC unroll 24
    for (int j = 0; j < R * C; ++j) part.kept[j] = acc[j];
    return;
  }
#pragma GCC unroll 24
  for (int j = 0; j < R * C; j += 4) reduce4(acc + j, &out[j / C][column + j % C]);
}

// R rows of x from m on by the C columns from n on; past the block's last column the tile repeats
// that column, and nothing reads those sums.
template <class Dot, bool kAhead, int R, int C = tile_columns(R)>
void dot_columns(const Matrix& x, int64_t m, const Matrix& w, const Block& block, int64_t n,
                 const Part& part, Sums& out) {
  const typename Dot::XElement* rows[R];
  for (int r = 0; r < R; ++r) {
    rows[r] = static_cast<const typename Dot::XElement*>(x.data) + (m + r) * x.stride;
  }
  const int64_t last = block.n1 - 1 - n;
  const typename Dot::Element* columns[C];
  for (int c = 0; c < C; ++c) {
    columns[c] = static_cast<const typename Dot::Element*>(w.data) +
                 (n + (c < last ? c : last)) * w.stride + part.start;
  }
  dot_tile<Dot, kAhead, R, C>(rows, columns, last < C ? 0 : C * w.stride, part, out, n - block.n0);
}

template <class Dot, int R>
void dot_rows(const Matrix& x, int64_t m, const Matrix& w, const Block& block, int64_t k,
              Sums& out) {
  for (int64_t n = block.n0; n < block.n1; n += tile_columns(R)) {
    dot_columns<Dot, true, R>(x, m, w, block, n, {0, k, nullptr, true, true}, out);
  }
}

// Chooses the tile for 1 to kMaxTileRows rows.
template <class Dot, int R = kMaxTileRows>
void dot_rows(int rows, const Matrix& x, int64_t m, const Matrix& w, const Block& block, int64_t k,
              Sums& out) {
  if (rows == R) {
    dot_rows<Dot, R>(x, m, w, block, k, out);
  } else if constexpr (R > 1) {
    dot_rows<Dot, R - 1>(rows, x, m, w, block, k, out);
  }
}

// The rows of a panel from m on, whole tiles of them.
template <class Dot>
void dot_panel(int tiles, const Matrix& x, int64_t m, const Matrix& w, const Block& block,
               int64_t k, Sums* out) {
  using X = typename Dot::XElement;
  constexpr int R = kMaxTileRows, C = tile_columns(R);
  Kept kept[kPanelTiles];
  // Copied together: rows whose distance is a power of two would meet in a few sets of the cache.
  X panel[kPanelRows * kChunk];
  const Matrix packed = {panel, kChunk};
  for (int64_t start = 0; start == 0 || start < k; start += kChunk) {
    const int64_t stop = k - start < kChunk ? k : start + kChunk;
    for (int r = 0; r < tiles * R; ++r) {
      const X* row = static_cast<const X*>(x.data) + (m + r) * x.stride + start;
      __builtin_memcpy(panel + r * kChunk, row, (stop - start) * sizeof(X));
    }
    for (int64_t n = block.n0; n < block.n1; n += C) {
      for (int tile = 0; tile < tiles; ++tile) {
        const Part part = {start, stop - start, kept[tile] + (n - block.n0) * R, start == 0, stop == k};
        dot_columns<Dot, false, R>(packed, tile * R, w, block, n, part, out[tile]);
      }
    }
  }
}

inline void add_scaled_in_place(float* a, const float* b, float scale, int64_t size) {
  for_each_vector(size, [=](int64_t i, auto... n) {
    store(a + i, madd(broadcast(scale), load(b + i, n...), load(a + i, n...)), n...);
  });
}

// From the sums of row m, columns from n on, to its results. `other` holds the sums of x w_up^T or
// of u lora_b^T where there is one.
template <class T>
void finish_row(const LinearArgs& args, int64_t m, int64_t n, int64_t columns, float* sums,
                float* other) {
  if (args.bias) add_in_place(sums, static_cast<const T*>(args.bias) + n, columns);
  activate_in_place(args.act, sums, columns);
  if (args.gated) {
    if (args.bias_up) add_in_place(other, static_cast<const T*>(args.bias_up) + n, columns);
    multiply_in_place(sums, other, columns);
  }
  if (args.rank) add_scaled_in_place(sums, other, args.scale, columns);
  if (args.partial.data) {
    add_in_place(sums, args.partial_dtype, args.partial.data, m * args.partial.stride + n, columns);
  }
  round_to(args.out_dtype, args.out, m * args.out_stride + n, sums, columns);
}

// The adapter's share of an output, u lora_b^T.
template <class T>
void dot_adapter(int rows, const LinearArgs& args, int64_t m, const Block& block, Sums& out) {
  dot_rows<Widened<T, float>>(rows, args.u, m, args.lora_b, block, args.rank, out);
}

// The results of some rows from m on, of which `sums` and `other` are.
template <class T>
void finish_rows(int rows, const LinearArgs& args, int64_t m, const Block& block, Sums& sums,
                 Sums& other) {
  for (int r = 0; r < rows; ++r) {
    finish_row<T>(args, m + r, block.n0, block.n1 - block.n0, sums[r], other[r]);
  }
}

template <class Dot>
void linear_block(const LinearArgs& args, const Block& block) {
  using T = typename Dot::Element;
  Sums sums[kPanelTiles], other[kPanelTiles];
  for (int64_t m = block.m0; m < block.m1;) {
    const int64_t left = block.m1 - m;
    const int rows = static_cast<int>(left < kMaxTileRows ? left : kMaxTileRows);
    const int64_t panel = left < kPanelRows ? left : kPanelRows;
    const int tiles = panel < 2 * kMaxTileRows ? 1 : static_cast<int>(panel / kMaxTileRows);
    if (tiles > 1) {
      dot_panel<Dot>(tiles, args.x, m, args.w, block, args.k, sums);
      if (args.gated) dot_panel<Dot>(tiles, args.x, m, args.w_up, block, args.k, other);
    } else {
      dot_rows<Dot>(rows, args.x, m, args.w, block, args.k, sums[0]);
      if (args.gated) dot_rows<Dot>(rows, args.x, m, args.w_up, block, args.k, other[0]);
    }
    for (int tile = 0; tile < tiles; ++tile, m += rows) {
      if (args.rank) dot_adapter<T>(rows, args, m, block, other[tile]);
      finish_rows<T>(rows, args, m, block, sums[tile], other[tile]);
    }
  }
}

}  // namespace
}  // namespace accel_cpu
