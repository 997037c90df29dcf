// Products of bf16 in AMX's tile registers, 16 rows of 64 bytes each, written over the vectors of
// vec_avx512.h.
//
// TDPBF16PS takes 32 k: for each of 16 x 16 results it sums the products of the even k one after
// the other, those of the odd likewise, adds the two and adds that to what was there, in fp32 that
// takes subnormals for zero. So every result is summed in one order, 32 k and then the next 32, and
// no sum need leave its register between them; a chunk is two. The operands may change places: a b
// is b a.
#pragma once

#include "amx_registers.h"
#include "bf16_pairs.h"
#include "linear_part.h"

namespace accel_cpu {
namespace {

constexpr int kSide = 16;           // of a register of sums
constexpr int64_t kTileDepth = 32;  // k in a register of rows or columns
constexpr int64_t kTileBytes = 64;  // in a row of any
static_assert(kLanes == kSide && kChunk % kTileDepth == 0);

// The calling thread's registers. Released, they are not saved with it when it is interrupted.
struct TileRegisters {
  TileRegisters() { _tile_loadconfig(&kWholeTiles); }
  ~TileRegisters() { _tile_release(); }
};

// GCC's loads of tiles do not say that they read memory: what is written there is written before.
inline void finish_writing() { __atomic_signal_fence(__ATOMIC_SEQ_CST); }

// Pairs, as many as fill the registers' depth.
struct Bf16Tiles : Bf16Pairs {
  using Arithmetic = Bf16Tiles;
  static constexpr int kSteps = kTileDepth / kDepth;

  static void stage(const bf16* x, int64_t k, Staged* out) {
    const int64_t whole = k / kDepth;
    __builtin_memset(out + whole, 0, (steps_of<Bf16Tiles>(k) - whole) * sizeof(Staged));
    __builtin_memcpy(out, x, k * sizeof(bf16));
  }
};

// 32 rows of x by 32 columns: sums in registers 0 to 3, rows in 4 and 5, columns in 6 and 7. Each
// operand is multiplied twice: a step reads 64 lines, of two a cycle that L1 has, and multiplies
// for 64 cycles (by Intel's figures; not measured).
inline void square_of_tiles(const uint32_t* x, InPanel<Bf16Tiles> w, int64_t steps, TileStart from,
                            TileSums to) {
  constexpr int64_t kRow = kChunkSteps<Bf16Tiles>, kColumns = 2;
  constexpr int64_t kRowBytes = kRow * sizeof *x, kStepBytes = kColumns * kTileBytes;
  finish_writing();
  if (from.data) {
    const int64_t bytes = from.stride * sizeof(float);
    _tile_loadd(0, from.data, bytes);
    _tile_loadd(1, from.data + kSide, bytes);
    _tile_loadd(2, from.data + kSide * from.stride, bytes);
    _tile_loadd(3, from.data + kSide * from.stride + kSide, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; step += Bf16Tiles::kSteps) {
    const uint32_t* rows = x + step / kRow * 2 * kSide * kRow + step % kRow;
    const Bf16Tiles::Operand* columns = w.panel + step * kColumns;
    _tile_loadd(4, rows, kRowBytes);
    _tile_loadd(6, columns, kStepBytes);
    _tile_loadd(7, columns + 1, kStepBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, rows + kSide * kRow, kRowBytes);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  const int64_t bytes = to.stride * sizeof(float);
  _tile_stored(0, to.data, bytes);
  _tile_stored(1, to.data + kSide, bytes);
  _tile_stored(2, to.data + kSide * to.stride, bytes);
  _tile_stored(3, to.data + kSide * to.stride + kSide, bytes);
}

// A panel and a tile of rows take 16 KiB each: beside the next rows the panel stays in an L1 of 48.
template <>
struct Tiles<Bf16Tiles> {
  static constexpr int64_t kSlice = kMaxSlice / 2;
  static int rows(int64_t) { return 2 * kSide; }
  static int vectors(int) { return 2; }
  template <class W>
  static LinearTile<Bf16Tiles, W> of(int) {
    return square_of_tiles;
  }
};

// 16 columns of R rows turned over, the lacking rows zeros; and back.
inline void turn(TileStart from, int R, float* out) {
  Vec v[kSide];
  for (int i = 0; i < kSide; ++i) v[i] = i < R ? load(from.data + i * from.stride) : zero();
  transpose(v);
  for (int i = 0; i < kSide; ++i) store(out + i * kSide, v[i]);
}

inline void turn_back(const float* turned, int R, TileSums to) {
  Vec v[kSide];
  for (int i = 0; i < kSide; ++i) v[i] = load(turned + i * kSide);
  transpose(v);
  for (int i = 0; i < R; ++i) store(to.data + i * to.stride, v[i]);
}

// The ends of 32 rows of w, zeros where it has none.
struct WeightEnd {
  alignas(64) bf16 rows[2 * kSide * kTileDepth] = {};

  void read(const InRows<Bf16Tiles>& w, int64_t k) {
    for (int64_t r = 0; r < smaller(w.rows, 2 * kSide); ++r) {
      __builtin_memcpy(rows + r * kTileDepth, w.w + r * w.stride + k,
                       smaller(w.k - k, kTileDepth) * sizeof(bf16));
    }
  }
};

// R rows of x, a panel of them, by 32 columns: rows of w as they lie are the first operand, and
// sums, in registers 0 and 1, stand turned.
inline void turned_tiles(const Bf16Tiles::Operand* x, const InRows<Bf16Tiles>& w, int R,
                         TileStart from, TileSums to) {
  alignas(64) float sums[2][kSide * kSide];
  if (from.data) {
    turn(from, R, sums[0]);
    turn({from.data + kSide, from.stride}, R, sums[1]);
    finish_writing();
    _tile_loadd(0, sums[0], kTileBytes);
    _tile_loadd(1, sums[1], kTileBytes);
  } else {
    finish_writing();
    _tile_zero(0);
    _tile_zero(1);
  }
  const auto step = [&](int64_t k, const bf16* rows, int64_t stride) {
    _tile_loadd(2, x + k / Bf16Tiles::kDepth, kTileBytes);
    _tile_loadd(3, rows, stride * sizeof(bf16));
    _tile_dpbf16ps(0, 3, 2);
    _tile_loadd(4, rows + kSide * stride, stride * sizeof(bf16));
    _tile_dpbf16ps(1, 4, 2);
  };
  const int64_t whole = w.rows < 2 * kSide ? 0 : w.k / kTileDepth * kTileDepth;
  for (int64_t k = 0; k < whole; k += kTileDepth) {
    w.ahead.ask(2 * kSide * kTileDepth * sizeof(bf16));
    step(k, w.w + k, w.stride);
  }
  for (int64_t k = whole; k < w.k; k += kTileDepth) {
    WeightEnd end;
    end.read(w, k);
    finish_writing();
    step(k, end.rows, kTileDepth);
  }
  _tile_stored(0, sums[0], kTileBytes);
  _tile_stored(1, sums[1], kTileBytes);
  turn_back(sums[0], R, to);
  turn_back(sums[1], R, {to.data + kSide, to.stride});
}

// Of up to kSide rows, which wait as a panel where others' rows do.
void turned_rows(const Matrix& x, const Matrix& w, int64_t k, const Results& results) {
  const Block& block = results.block;
  const LinearScratch& scratch = results.scratch;
  constexpr int64_t C = 2 * kSide, kMost = kStagedRows / (kSide / 2) * kMaxSlice;
  const int R = static_cast<int>(block.m1 - block.m0);
  auto* panel = static_cast<Bf16Tiles::Operand*>(scratch.x);
  for_slices(block, scratch, k, kChunk, kMost, [&](const Slice& slice) {
    const int64_t k0 = slice.k0, size = slice.size;
    read_panel<Bf16Tiles>(PanelOf{x, block.m0, block.m1, k0, size}, 1, panel);
    for_columns(block, block.m0, block.m1, C, [&](const Block& tile) {
      const auto* rows = static_cast<const bf16*>(w.data) + tile.n0 * w.stride + k0;
      const auto run = [&](TileStart from, TileSums to) {
        Ahead ahead = weight_ahead(rows + C * w.stride, w.stride, size, block.n1 - tile.n0 - C);
        turned_tiles(panel, {rows, w.stride, tile.n1 - tile.n0, size, ahead}, R, from, to);
      };
      sum_tile(slice, tile, R, C, run, results);
    });
  });
}

// Few rows take w as it lies, more a panel of it.
void product_of_tiles(const Matrix& x, const Matrix& w, int64_t k, const Results& results) {
  const TileRegisters registers;
  if (results.block.m1 - results.block.m0 <= kSide && !w.by_columns) {
    return turned_rows(x, w, k, results);
  }
  many_rows<Bf16Tiles>({x, stage_rows<Bf16Tiles, bf16>}, w, read_panel<Bf16Tiles>, k,
                               results);
}

}  // namespace
}  // namespace accel_cpu
