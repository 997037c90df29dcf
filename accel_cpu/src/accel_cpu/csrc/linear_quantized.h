// A part of quantized_linear on one thread, written over the vectors of the vec_*.h included before
// it. Sums as in linear_tile.h, of the whole numbers. Where all k of a chunk have one scale its sum
// takes it, before it is added to the others; else each number, as it is widened.
#pragma once

#include "linear_part.h"
#include "quantized_panel.h"

namespace accel_cpu {
namespace {

// The most rows that take w as it is read. (Each number takes the compiler a second.)
constexpr int kFewQuantizedRows = kFewRows < 4 ? kFewRows : 4;

// Chunks side by side in a tile of R rows and one vector: alone each addition would wait for the
// last one's end.
template <int R>
constexpr int kSideBySide = tile_vectors(R) < 4 ? tile_vectors(R) : 4;

// acc[p][r] = x[p][r] . w[p] over all k of each chunk p, whose numbers are widened on the way, and
// scaled where each step has its `scales`. One after the other the chunks take 1.15 times as long
// (M=1, one Zen 3 core).
template <int kBits, int R, int P>
inline void sum_chunks(const float* x, const Vec* w, const Vec* scales, Vec (&acc)[P * R]) {
  constexpr int64_t kSteps = kChunk / kNumbers<kBits>;
#pragma GCC unroll 24
  for (int j = 0; j < P * R; ++j) acc[j] = zero();
  for (int64_t step = 0; step < kSteps; ++step) {
#pragma GCC unroll 8
    for (int j = 0; j < kNumbers<kBits>; ++j) {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        Vec b = unpack<kBits>(w[p * kSteps + step], j);
        if (scales) b = mul(scales[p * kSteps + step], mul(broadcast(unit_of(kBits)), b));
        const float* a = x + p * R * kChunk + step * kNumbers<kBits> + j;
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          acc[p * R + r] = madd(broadcast(a[r * kChunk]), b, acc[p * R + r]);
        }
      }
    }
  }
}

// A tile of R rows and kLanes columns over a slice of k. x is as stage_rows leaves it, with zeros
// from the last k to the end of its chunk; of chunks past that anything, of which nothing is kept.
template <int kBits, int R>
void quantized_tile(const float* x, const PanelOf<QuantizedMatrix>& slice, Vec* packed,
                    TileStart from, TileSums to) {
  constexpr int P = kSideBySide<R>;
  const int64_t below = kLanes * slice.w.bytes.stride;  // the next tile's rows
  const Vec unit = broadcast(unit_of(kBits));
  const bool of_chunks = scales_chunks(slice.w);
  Scales scales = {slice};
  Vec of_steps[kMaxSlice / kNumbers<kBits>];
  Vec sums[R];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) sums[r] = from.data ? load(from.data + r * from.stride) : zero();
  for (int64_t done = 0; done < slice.k; done += kMaxSlice) {
    const int64_t k0 = slice.k0 + done, k = smaller(slice.k - done, kMaxSlice);
    const bool last = done + k == slice.k;
    read_packed<kBits>({slice.w, slice.n, slice.n1, k0, k},
                       last ? below - bytes_of<kBits>(done) : bytes_of<kBits>(kMaxSlice), packed);
    const int64_t scaled = of_chunks ? 0 : (k + kChunk - 1) / kChunk * kChunk;
    for (int64_t i = 0; i < scaled; i += kNumbers<kBits>) {
      of_steps[i / kNumbers<kBits>] = i < k ? scales.at(k0 + i) : zero();
    }
    const Vec *w = packed, *of_step = of_steps;
    for (int64_t i = 0; i < k; i += P * kChunk) {
      Vec acc[P * R];
      if (of_chunks) {
        sum_chunks<kBits, R, P>(x, w, nullptr, acc);
      } else {
        sum_chunks<kBits, R, P>(x, w, of_step, acc);
      }
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        if (i + p * kChunk >= k) break;
        const Vec scale = of_chunks ? scales.at(k0 + i + p * kChunk) : zero();
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          const Vec sum = acc[p * R + r];
          sums[r] = add(sums[r], of_chunks ? mul(scale, mul(unit, sum)) : sum);
        }
      }
      w += P * kChunk / kNumbers<kBits>;
      of_step += P * kChunk / kNumbers<kBits>;
      x += P * R * kChunk;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) store(to.data + r * to.stride, sums[r]);
}

// Zeros from the last of k to the end of its chunk, of the one tile that is staged.
inline void fill_chunk(const StagedRows<Fp32>& staged, int64_t k) {
  for (int r = 0; r < staged.rows; ++r) {
    float* last = staged.row(r) + (staged.chunks - 1) * staged.rows * kChunk;
    for (int64_t i = k - (staged.chunks - 1) * kChunk; i < kChunk; ++i) last[i] = 0;
  }
}

using QuantizedTile = void (*)(const float*, const PanelOf<QuantizedMatrix>&, Vec*, TileStart,
                               TileSums);

// The tile for 1 to kFewQuantizedRows rows.
template <int kBits, int R = kFewQuantizedRows>
QuantizedTile quantized_tile_of(int rows) {
  if constexpr (R > 1) {
    if (rows < R) return quantized_tile_of<kBits, R - 1>(rows);
  }
  return quantized_tile<kBits, R>;
}

// Of up to kFewQuantizedRows rows, where chunks take their scale, or steps do.
void few_quantized_rows(const RowsOf<Fp32>& x, const QuantizedMatrix& w, int64_t k,
                        const Results& results) {
  const Block& block = results.block;
  const LinearScratch& scratch = results.scratch;
  const int R = static_cast<int>(block.m1 - block.m0);
  auto* packed = static_cast<Vec*>(scratch.w);
  const auto tile_sums = w.bits == 8 ? quantized_tile_of<8>(R) : quantized_tile_of<4>(R);
  for_slices(block, scratch, k, kChunk, kStagedRows / R * kMaxSlice, [&](const Slice& slice) {
    const auto rows = staged<Fp32>(scratch, R, slice.size);
    x.stage(block.m0, block.m1, slice.k0, slice.size, rows);
    fill_chunk(rows, slice.size);
    for_columns(block, block.m0, block.m1, kLanes, [&](const Block& tile) {
      const PanelOf<QuantizedMatrix> part = {w, tile.n0, tile.n1, slice.k0, slice.size};
      const auto run = [&](TileStart from, TileSums to) {
        tile_sums(rows.data, part, packed, from, to);
      };
      sum_tile(slice, tile, R, kLanes, run, results);
    });
  });
}

void quantized_part(const LinearArgs& args, const Block& block, const LinearScratch& scratch) {
  const QuantizedMatrix& w = args.quantized;
  const Results results = {args, block, scratch};
  of_dtype(args.dtype, [&](auto element) {
    const RowsOf<Fp32> x = {args.x, stage_rows<Fp32, decltype(element)>};
    const bool by_steps = w.group % (32 / w.bits) == 0;
    if (block.m1 - block.m0 <= kFewQuantizedRows && (scales_chunks(w) || by_steps)) {
      return few_quantized_rows(x, w, args.k, results);
    }
    many_rows<Fp32, QuantizedMatrix>(x, w, read_quantized_panel, args.k, results);
  });
}

}  // namespace
}  // namespace accel_cpu
