// A part of linear, gated_linear or lora_linear on one thread, written over the vectors of the
// vec_*.h included before it. The results do not depend on how the whole was cut (linear_tile.h).
//
// Of a long k lanes are consecutive k (linear_dots.h). Of one below kLeastDotDepth they are
// columns: k is taken in slices; a row's sums wait in memory for the next one. Few rows take w as
// it is read. Of more, staged in L2 kStagedRows at a time, tile after tile passes by a panel of w
// in L1; the panels are kept where there are more rows than that.
#pragma once

#include "linear_few.h"
#include "linear_product.h"

namespace accel_cpu {
namespace {

template <class Dot>
StagedRows<Dot> staged(const LinearScratch& scratch, int rows, int64_t k) {
  return {static_cast<typename Dot::Staged*>(scratch.x), rows, (k + kChunk - 1) / kChunk};
}

// x, and how its rows are staged.
template <class Dot>
struct RowsOf {
  const Matrix& x;
  void (*rows)(const Matrix&, int64_t m, int64_t m1, int64_t k0, int64_t k, const StagedRows<Dot>&);

  void stage(int64_t m, int64_t m1, int64_t k0, int64_t k, const StagedRows<Dot>& out) const {
    rows(x, m, m1, k0, k, out);
  }
};

// How many rows are few.
template <class Dot>
constexpr int few(const Matrix& w) {
  return w.by_columns ? kFewRows : kTransposedRows<Dot>;
}

// Of so many rows.
template <class Dot>
void few_rows(const RowsOf<typename Dot::Arithmetic>& x, const Matrix& w, int64_t k,
              const Results& results) {
  const Block& block = results.block;
  const LinearScratch& scratch = results.scratch;
  const int R = static_cast<int>(block.m1 - block.m0), vectors = tile_vectors(R);
  const int64_t C = vectors * kLanes;
  auto* panel = static_cast<typename Dot::Operand*>(scratch.w);
  const auto direct = linear_tile_of<Dot, InColumns<Dot>, kFewRows>(smaller(R, kFewRows));
  const auto transposed = transposed_tile_of<Dot>(R);
  const auto packed = linear_tile_of<typename Dot::Arithmetic>(R);
  // By columns each k is a page of its own, and the processor has the addresses of 64 at hand. By
  // rows as much as can be staged.
  const int64_t most = w.by_columns ? kChunk : kStagedRows / R * kMaxSlice;

  for_slices(block, scratch, k, kChunk, most, [&](const Slice& slice) {
    const int64_t k0 = slice.k0, size = slice.size, steps = steps_of<Dot>(size);
    const auto rows = staged<typename Dot::Arithmetic>(scratch, R, size);
    x.stage(block.m0, block.m1, k0, size, rows);
    for_columns(block, block.m0, block.m1, C, [&](const Block& tile) {
      const auto run = [&](TileStart from, TileSums to) {
        const auto* at = static_cast<const typename Dot::Element*>(w.data) +
                         (w.by_columns ? k0 * w.stride + tile.n0 : tile.n0 * w.stride + k0);
        if (!w.by_columns) {
          Ahead ahead = weight_ahead(at + kLanes * w.stride, w.stride, size,
                                     block.n1 - tile.n0 - kLanes);
          transposed(rows.data, {at, w.stride, tile.n1 - tile.n0, size, ahead}, steps, from, to);
        } else if (tile.n1 - tile.n0 == C && size % Dot::kDepth == 0) {
          direct(rows.data, {at, w.stride}, steps, from, to);
        } else {
          read_panel<Dot>(PanelOf{w, tile.n0, tile.n1, k0, size}, vectors, panel);
          packed(rows.data, {panel}, steps, from, to);
        }
      };
      sum_tile(slice, tile, R, C, run, results);
    });
  });
}

static_assert(kStagedRows % kTileRows == 0, "up to kStagedRows are staged at once");

template <class Dot>
using ReadPanel = void (*)(const PanelOf&, int vectors, typename Dot::Operand*);

// Of more, of a w whose panels `read` reads.
template <class Dot>
void many_rows(const RowsOf<Dot>& x, const Matrix& w, ReadPanel<Dot> read, int64_t k,
               const Results& results) {
  const Block& block = results.block;
  const LinearScratch& scratch = results.scratch;
  const int R = Tiles<Dot>::rows(smaller(block.m1 - block.m0, kStagedRows));
  const int vectors = Tiles<Dot>::vectors(R);
  const int64_t C = vectors * kLanes, together = (kStagedRows + R - 1) / R * R;
  const bool once = block.m1 - block.m0 <= together;
  auto* panels = static_cast<typename Dot::Operand*>(scratch.w);
  const int64_t most = once && w.by_columns ? kChunk : Tiles<Dot>::kSlice;
  const int64_t panel_size = vectors * kPanelSteps;

  for_slices(block, scratch, k, kChunk, most, [&](const Slice& slice) {
    const int64_t k0 = slice.k0, size = slice.size, steps = steps_of<Dot>(size);
    const auto rows = staged<Dot>(scratch, R, size);
    for (int64_t m = block.m0; m < block.m1; m += together) {
      const int64_t end = smaller(m + together, block.m1);
      x.stage(m, end, k0, size, rows);
      for_columns(block, m, end, C, [&](const Block& tiles) {
        const int64_t n = tiles.n0;
        auto* panel = once ? panels : panels + (n - block.n0) / C * panel_size;
        const PanelOf part = {w, n, block.n1, k0, size};
        if (m == block.m0) read(part, vectors, panel);
        const InPanel<Dot> in = {panel};
        const auto tile_sums = Tiles<Dot>::template of<InPanel<Dot>>(R);
        for (int64_t r = m; r < end; r += R) {
          const auto run = [&](TileStart from, TileSums to) {
            tile_sums(rows.tile(r - m), in, steps, from, to);
          };
          sum_tile(slice, {r, smaller(r + R, end), n, tiles.n1}, R, C, run, results);
        }
      });
    }
  });
}

// The sums of x w^T, x of X, for each tile of the block.
template <class Dot, class X>
void product(const Matrix& x, const Matrix& w, int64_t k, const Results& results) {
  if (k >= kLeastDotDepth) {
    using Rows = typename Dot::Arithmetic::Rows;
    return dot_product<Rows, X>(x, PlainWeight<Rows, Dot>{w}, k, results);
  }
  using Arithmetic = typename Dot::Arithmetic;
  const RowsOf<Arithmetic> rows = {x, stage_rows<Arithmetic, X>};
  const int64_t count = results.block.m1 - results.block.m0;
  if (count <= few<Dot>(w)) return few_rows<Dot>(rows, w, k, results);
  many_rows<Arithmetic>(rows, w, read_panel<Dot>, k, results);
}

// A part where `own` multiplies x, of T, by a weight of T.
template <class T>
void linear_part_by(const LinearArgs& args, const Block& block, const LinearScratch& scratch,
                    void (*own)(const Matrix&, const Matrix&, int64_t, const Results&)) {
  const Results keep = {args, block, scratch, true};
  if (args.gated) own(args.x, args.w_up, args.k, keep);
  if (args.rank) product<Widened<T>, float>(args.u, args.lora_b, args.rank, keep);
  const Results results = {args, block, scratch, false, args.gated || args.rank};
  if (args.wide_x) return product<Widened<T>, float>(args.x, args.w, args.k, results);
  own(args.x, args.w, args.k, results);
}

template <class Dot>
void linear_part(const LinearArgs& args, const Block& block, const LinearScratch& scratch) {
  using T = typename Dot::Element;
  linear_part_by<T>(args, block, scratch, product<Dot, T>);
}

}  // namespace
}  // namespace accel_cpu
