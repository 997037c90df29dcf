// Attention on one thread, written over the vectors of the vec_*.h included before it: of few rows
// as in attention_few.h, of many beside one kv head tile by tile. Each row as in attention_row.h.
#pragma once

#include "attention_few.h"
#include "linear_tile.h"

namespace accel_cpu {
namespace {

static_assert(kAttentionKeys == kTileColumns && kAttentionRows % kTileRows == 0);

// The weights of a tile's rows for a block of keys, and what each row does with them.
struct Weights {
  float of_key[kTileRows][kAttentionKeys];
  float factor[kTileRows];   // of the values of earlier blocks
  KeyRange keys[kTileRows];  // that the row sees; both ends ascend
};

// out[r][e + j] = factor[r] out[r][e + j] + the sum of of_key[r][key] v[key][e + j] over the keys
// that row r sees, for R rows from the first on, which see the same first key, and C vectors of j,
// or the n elements of one.
template <int R, int C, class... N>
void add_values_tile(const Weights& weights, int first, const float* v, int64_t stride, float* out,
                     int64_t width, int64_t e, N... n) {
  const auto* of_key = weights.of_key + first;
  const KeyRange* keys = weights.keys + first;
  // Unrolled by request, as in linear_tile.
  Vec acc[R * C];
#pragma GCC unroll 24
  for (int j = 0; j < R * C; ++j) acc[j] = zero();

  int64_t key = keys[0].from;
  for (; key < keys[0].to; ++key) {  // which all rows see
    Vec weight[R];
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) weight[r] = broadcast(of_key[r][key]);
#pragma GCC unroll 24
    for (int c = 0; c < C; ++c) {
      const Vec value = load(v + key * stride + e + c * kLanes, n...);
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r) acc[r * C + c] = madd(weight[r], value, acc[r * C + c]);
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < R; ++r) {
    for (int64_t own = key; own < keys[r].to; ++own) {
      const Vec weight = broadcast(of_key[r][own]);
#pragma GCC unroll 24
      for (int c = 0; c < C; ++c) {
        const Vec value = load(v + own * stride + e + c * kLanes, n...);
        acc[r * C + c] = madd(weight, value, acc[r * C + c]);
      }
    }
    if (keys[r].empty()) continue;
#pragma GCC unroll 24
    for (int c = 0; c < C; ++c) {
      float* p = out + r * width + e + c * kLanes;
      store(p, madd(load(p, n...), broadcast(weights.factor[first + r]), acc[r * C + c]), n...);
    }
  }
}

constexpr int kValueRows = kTileRows < 6 ? kTileRows : 6;

// The same for all `width` elements of a value. Chooses the tile for 1 to kValueRows rows.
template <int R = kValueRows>
void add_values(int rows, const Weights& weights, int first, const float* v, int64_t stride,
                float* out, int64_t width) {
  if constexpr (R > 1) {
    if (rows < R) return add_values<R - 1>(rows, weights, first, v, stride, out, width);
  }
  constexpr int C = tile_vectors(R);
  int64_t e = 0;
  for (; e + C * kLanes <= width; e += C * kLanes) {
    add_values_tile<R, C>(weights, first, v, stride, out, width, e);
  }
  for_each_vector(width - e, [&](int64_t i, auto... n) {
    add_values_tile<R, 1>(weights, first, v, stride, out, width, e + i, n...);
  });
}

// How a block's rows and the panels of its keys lie.
struct AttentionTiles {
  int rows, vectors;  // of a tile
  int64_t q_size;     // floats of a tile's queries
  int64_t k_size;     // and of a panel of keys
};

inline AttentionTiles attention_tiles(const AttentionArgs& args, int64_t rows) {
  const int R = tile_rows(rows), vectors = tile_vectors(R);
  const int64_t chunks = (args.d + kChunk - 1) / kChunk;
  return {R, vectors, chunks * R * kChunk, chunks * kChunk * vectors * kLanes};
}

// Panels of a block of keys, [keys, d].
template <class T>
void read_keys(const Matrix& k, int64_t keys, int64_t d, const AttentionTiles& tiles, float* out) {
  for (int64_t n = 0; n < keys; n += tiles.vectors * kLanes, out += tiles.k_size) {
    read_panel<Widened<T>>({k, n, keys, 0, d}, tiles.vectors, reinterpret_cast<Vec*>(out));
  }
}

// Takes `count` rows through the keys of their span from `first` on, as far as they see the next
// kAttentionKeys: those whose panels and values, [keys, e], are at hand.
inline void take_keys(const AttentionRows& rows, const AttentionTiles& tiles, AttentionRow* row,
                      int64_t count, int64_t first, const float* v, int64_t v_stride,
                      const AttentionScratch& scratch) {
  const AttentionArgs& args = rows.args;
  const auto scores = linear_tile_of<Fp32>(tiles.rows);
  const int64_t columns = tiles.vectors * kLanes;
  for (int64_t m = 0; m < count; m += tiles.rows) {
    const int tile = static_cast<int>(smaller(count - m, tiles.rows));
    const int64_t keys = in_block(row[m + tile - 1].seen, first).to;
    if (keys == 0 || row[m].seen.from >= first + kAttentionKeys) continue;
    Weights weights;
    for (int64_t n = 0; n < keys; n += columns) {
      scores(scratch.q + m / tiles.rows * tiles.q_size,
             {reinterpret_cast<const Vec*>(scratch.k + n / columns * tiles.k_size)}, args.d, {},
             {weights.of_key[0] + n, kAttentionKeys});
    }
    for (int r = 0; r < tile; ++r) {
      const KeyRange seen = weights.keys[r] = in_block(row[m + r].seen, first);
      if (seen.empty()) continue;
      weights.factor[r] = weigh(rows, m + r, first, seen, weights.of_key[r], row[m + r]);
    }
    for (int r = 0, values = 0; r < tile; r += values) {
      values = static_cast<int>(smaller(tile - r, kValueRows));
      // At the beginning of windows row by row.
      if (weights.keys[r].from != weights.keys[r + values - 1].from) values = 1;
      add_values(values, weights, r, v, v_stride, scratch.out + (m + r) * args.e, args.e);
    }
  }
}

template <class T>
void many_rows(const AttentionArgs& args, const AttentionBlock& block,
               const AttentionScratch& scratch) {
  const AttentionRows rows(args, block.span, block.g0, block.r0);
  const int64_t count = block.r1 - block.r0;
  const AttentionTiles tiles = attention_tiles(args, count);
  AttentionRow row[kAttentionRows];
  for (int64_t r = 0; r < count; ++r) {
    float* tile = scratch.q + r / tiles.rows * tiles.q_size;
    row[r] = begin<T>(rows, r, tiles.rows, tile + r % tiles.rows * kChunk);
  }
  __builtin_memset(scratch.out, 0, count * args.e * sizeof(float));

  const KeyRange seen = {row[0].seen.from, row[count - 1].seen.to};  // by any row
  int64_t first = seen.from / kAttentionKeys * kAttentionKeys;
  for (; first < seen.to; first += kAttentionKeys) {
    const int64_t keys = in_block(seen, first).to;
    const T* k = row_in<T>(args.k, rows.span.k_start + first, block.g0);
    const T* v = row_in<T>(args.v, rows.span.k_start + first, block.g0);
    read_keys<T>({k, args.k.row}, keys, args.d, tiles, scratch.k);
    if constexpr (sizeof(T) == sizeof(float)) {
      take_keys(rows, tiles, row, count, first, v, args.v.row, scratch);
    } else {  // widened once, as every tile reads them
      for (int64_t i = 0; i < keys; ++i) {
        widen_to(scratch.v + i * args.e, v + i * args.v.row, args.e);
      }
      take_keys(rows, tiles, row, count, first, scratch.v, args.e, scratch);
    }
  }
  for (int64_t r = 0; r < count; ++r) finish<T>(rows, r, row[r], scratch.out + r * args.e);
}

template <class T>
void attention_block(const AttentionArgs& args, const AttentionBlock& block,
                     const AttentionScratch& scratch) {
  if (block.r1 - block.r0 > kAttentionFew) return many_rows<T>(args, block, scratch);
  FewRows<T>{args, block, scratch}.run();
}

}  // namespace
}  // namespace accel_cpu
