// The tiles and slices of k that a part of a product is summed in, written over the vectors of the
// vec_*.h included before it.
#pragma once

#include "linear_finish.h"

namespace accel_cpu {
namespace {

// What a thread sums for a block of results over a slice of k.
struct Slice {
  const Block& block;
  const LinearScratch& scratch;
  int64_t k0, size;
  bool last;
};

// Calls run(from, to) with where the sums of a tile of R rows and C columns come from, first of all
// results.start(), and go to: their place, if results.place() has one, else they wait in memory
// until results.finish() takes them there.
template <class Run>
void sum_tile(const Slice& slice, const Block& tile, int R, int64_t C, Run run,
              const Results& results) {
  const auto& [block, scratch, k0, size, last] = slice;
  alignas(64) float sums[kMaxTileSums];
  const TileSums place = results.place(tile, R, C), here = {sums, C};
  float* kept = scratch.sums + (tile.m0 - block.m0) * scratch.sums_stride + (tile.n0 - block.n0);
  const TileSums waiting = place.data ? place : TileSums{kept, scratch.sums_stride};
  const TileStart from = k0 ? waiting : results.start(tile, R, C, here);
  if (place.data || !last) return run(from, waiting);
  run(from, here);
  results.finish(tile, sums, C);
}

// Calls f(slice) for even slices of k, of whole chunks, once where k is 0.
template <class F>
void for_slices(const Block& block, const LinearScratch& scratch, int64_t k, int64_t chunk,
                int64_t most, F f) {
  const int64_t slices = (k + most - 1) / most, chunks = (k + chunk - 1) / chunk;
  const int64_t even = slices ? (chunks + slices - 1) / slices * chunk : 0;
  int64_t k0 = 0;
  do {
    const int64_t size = smaller(k - k0, even);
    f(Slice{block, scratch, k0, size, k0 + size == k});
    k0 += size;
  } while (k0 < k);
}

// Calls f(tile) for the tiles of C columns of these rows.
template <class F>
void for_columns(const Block& block, int64_t m0, int64_t m1, int64_t C, F f) {
  for (int64_t n = block.n0; n < block.n1; n += C) f(Block{m0, m1, n, smaller(n + C, block.n1)});
}

}  // namespace
}  // namespace accel_cpu
