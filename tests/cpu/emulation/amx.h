// AMX's tiles of bf16 in memory, as the pseudo code of Intel's Software Developer's Manual has them
// (volume 2: LDTILECFG, TILELOADD, TILESTORED, TDPBF16PS). What would fault, aborts. Forced before
// every file of the kernels, as avx512.h is.
#pragma once

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated {

inline void need(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "emulated AMX: %s\n", what);
  std::abort();
}

struct Tile {
  int rows = 0, row_bytes = 0;
  alignas(64) uint8_t at[16][64] = {};
};

inline thread_local Tile tiles[8];  // not configured: of no rows

inline void release() {
  for (Tile& tile : tiles) tile = Tile{};
}

inline void load_config(const void* config) {
  uint8_t bytes[64];
  std::memcpy(bytes, config, sizeof bytes);
  release();
  if (bytes[0] == 0) return;
  need(bytes[0] == 1, "LDTILECFG: of no known palette");
  const auto zeros = [&](int from, int to) {
    for (int i = from; i < to; ++i) need(bytes[i] == 0, "LDTILECFG: reserved bytes are not zeros");
  };
  zeros(2, 16);
  zeros(32, 48);
  zeros(56, 64);
  need(bytes[1] == 0, "LDTILECFG: starts at a row, which is not emulated");
  for (int i = 0; i < 8; ++i) {
    const int row_bytes = bytes[16 + 2 * i] | bytes[17 + 2 * i] << 8, rows = bytes[48 + i];
    need(row_bytes <= 64 && rows <= 16, "LDTILECFG: a tile is larger than 16 rows of 64 bytes");
    need((row_bytes == 0) == (rows == 0), "LDTILECFG: a tile has rows or columns alone");
    tiles[i].rows = rows;
    tiles[i].row_bytes = row_bytes;
  }
}

inline Tile& configured(int i) {
  need(tiles[i].rows > 0, "a tile is not configured");
  return tiles[i];
}

inline void zero(int i) { std::memset(configured(i).at, 0, sizeof tiles[i].at); }

inline void load(int i, const void* base, int64_t stride) {
  zero(i);
  for (int row = 0; row < tiles[i].rows; ++row) {
    std::memcpy(tiles[i].at[row], static_cast<const char*>(base) + row * stride,
                tiles[i].row_bytes);
  }
}

inline void store(int i, void* base, int64_t stride) {
  const Tile& tile = configured(i);
  for (int row = 0; row < tile.rows; ++row) {
    std::memcpy(static_cast<char*>(base) + row * stride, tile.at[row], tile.row_bytes);
  }
}

[[gnu::optimize("O3")]] inline void widen(const uint8_t* row, float* out) {
  uint32_t bits[32];
  for (int i = 0; i < 32; ++i) bits[i] = (row[2 * i] | row[2 * i + 1] << 8) << 16;
  std::memcpy(out, bits, sizeof bits);
}

// Of each column a sum of even and one of odd k, then their sum. Optimized, or the tests would take
// hours; apart, so that nothing of it is done before the mode is set.
[[gnu::noinline, gnu::optimize("O3")]] inline void add_products(Tile& c, const Tile& a,
                                                                const Tile& b) {
  float of_a[32], of_b[16][32];
  for (int k = 0; k < b.rows; ++k) widen(b.at[k], of_b[k]);
  for (int m = 0; m < c.rows; ++m) {
    widen(a.at[m], of_a);
    float sums[32] = {};
    for (int k = 0; k < b.rows; ++k) {
      for (int n = 0; n < 32; n += 2) {
        sums[n] = __builtin_fmaf(of_a[2 * k], of_b[k][n], sums[n]);
        sums[n + 1] = __builtin_fmaf(of_a[2 * k + 1], of_b[k][n + 1], sums[n + 1]);
      }
    }
    float row[16];
    std::memcpy(row, c.at[m], c.row_bytes);
    for (int n = 0; n < c.row_bytes / 4; ++n) row[n] += sums[2 * n] + sums[2 * n + 1];
    std::memcpy(c.at[m], row, c.row_bytes);
  }
}

inline void dpbf16ps(int to, int first, int second) {
  need(to != first && first != second && second != to, "TDPBF16PS: two operands are one tile");
  Tile& c = configured(to);
  const Tile &a = configured(first), &b = configured(second);
  need(c.row_bytes % 4 == 0 && a.row_bytes % 4 == 0 && c.rows == a.rows &&
           c.row_bytes == b.row_bytes && a.row_bytes / 4 == b.rows,
       "TDPBF16PS: the operands' sizes do not fit");
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // subnormals are zero on both ways, to nearest even, nothing is raised
  add_products(c, a, b);
  _mm_setcsr(mode);
}

}  // namespace emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) emulated::load_config(config)
#define _tile_release() emulated::release()
#define _tile_loadd(tile, base, stride) emulated::load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated::store(tile, base, stride)
#define _tile_zero(tile) emulated::zero(tile)
#define _tile_dpbf16ps(to, first, second) emulated::dpbf16ps(to, first, second)

// What the kernels ask of the processor and of Linux: leave to compute, which is not refused.
#define __get_cpuid_count(leaf, subleaf, a, b, c, d) (*(d) = ~0u, 1)
#undef SYS_arch_prctl
#define SYS_arch_prctl SYS_sched_yield
