// A block of attention on one thread, written over the vectors of the vec_*.h included before it.
//
// A row is one query in one head. It takes its keys in blocks of kAttentionKeys, counted from the
// first key of its span: from the block of the first key it sees on, and no further than the last
// it sees. Of each block it sums the weights exp(score - the largest score so far) and the weighted
// values, key after key; then it adds them to what it has, scaled from the largest score until then
// to this one. A score is summed in an order that d alone fixes. None of this depends on the rows
// under way beside it: a query has the same bits in a prefill, in a decode step, and wherever its
// keys lie.
#pragma once

#include "attention_scores.h"
#include "linear_tile.h"
#include "row_sum.h"

namespace accel_cpu {
namespace {

static_assert(kAttentionKeys == kTileColumns && kAttentionRows % kTileRows == 0);

// A row so far.
struct AttentionRow {
  KeyRange seen;  // of its span
  float top;      // the largest score
  Vec weights;    // lane by lane the sum of exp(score - top)
};

// Makes weights of the scores of `keys` keys. Returns what the values of earlier blocks must be
// multiplied by.
inline float weigh(float* s, int64_t keys, float scale, AttentionRow& row) {
  const Vec lowest = broadcast(-INFINITY);
  Vec top = lowest;
  for_each_vector(keys, [&](int64_t i, auto... n) {
    const Vec a = first_of(mul(load(s + i, n...), broadcast(scale)), lowest, n...);
    store(s + i, a);  // what lies behind the last key weighs exp(-inf) = 0
    top = max(top, a);
  });
  const float before = row.top;
  const float found = highest_lane(top);
  row.top = found > before ? found : before;
  // While every score is -inf any finite number serves; -inf itself would make them NaN.
  const Vec shift = broadcast(row.top == -INFINITY ? 0.0f : row.top);
  Vec weights = zero();
  for (int64_t i = 0; i < keys; i += kLanes) {
    const Vec weight = exp(sub(load(s + i), shift));
    store(s + i, weight);
    weights = add(weights, weight);
  }
  const Vec factor = exp(sub(broadcast(before), shift));
  row.weights = madd(row.weights, factor, weights);
  float lanes[kLanes];
  store(lanes, factor);
  return lanes[0];
}

// The weights of a tile's rows for a block of keys, and what each row does with them.
struct Weights {
  float of_key[kTileRows][kAttentionKeys];
  float factor[kTileRows];   // of the values of earlier blocks
  KeyRange keys[kTileRows];  // that the row sees; both ends ascend
};

// out[r][e + j] = factor[r] out[r][e + j] + the sum of of_key[r][key] v[key][e + j] over the keys
// that row r sees, for R rows from the first on, which see the same first key, and C vectors of j,
// or the n elements of one.
template <int R, int C, class T, class... N>
void add_values_tile(const Weights& weights, int first, const T* v, int64_t stride, float* out,
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
template <int R = kValueRows, class T>
void add_values(int rows, const Weights& weights, int first, const T* v, int64_t stride, float* out,
                int64_t width) {
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
template <class V>
void take_keys(const AttentionRows& rows, const AttentionTiles& tiles, AttentionRow* row,
               int64_t count, int64_t first, const V* v, int64_t v_stride,
               const AttentionScratch& scratch) {
  const AttentionArgs& args = rows.args;
  const bool adjusted = adjusts(args);
  const float scale = adjusted ? 1.0f : args.scale;
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
      const KeyRange seen = in_block(row[m + r].seen, first);
      weights.keys[r] = seen;
      if (seen.empty()) continue;
      float* s = weights.of_key[r];
      if (adjusted) adjust(rows, m + r, first, seen, s);
      weights.factor[r] = weigh(s, seen.to, scale, row[m + r]);
      if (args.dropout.drops) {
        float left[kAttentionKeys];
        find_left(rows, m + r, first, left);
        keep(left, s, seen.to);
      }
    }
    for (int r = 0, values = 0; r < tile; r += values) {
      values = static_cast<int>(smaller(tile - r, kValueRows));
      // At the beginning of windows row by row.
      if (weights.keys[r].from != weights.keys[r + values - 1].from) values = 1;
      add_values(values, weights, r, v, v_stride, scratch.out + (m + r) * args.e, args.e);
    }
  }
}

// Divides the values of a row that sees keys by the sum of its weights; 0 where a mask hides all.
// Returns the log of the sum of exp(score), for which no number serves where there is none.
inline float normalize(const AttentionRow& row, bool masked, float* sums, int64_t e) {
  const Vec lanes[4] = {row.weights, zero(), zero(), zero()};
  float total[4];
  reduce4(lanes, total);
  if (masked && total[0] == 0) {
    __builtin_memset(sums, 0, e * sizeof(float));
    return INFINITY;
  }
  for_each_vector(e, [&](int64_t i, auto... n) {
    store(sums + i, div(load(sums + i, n...), broadcast(total[0])), n...);
  });
  return row.top + ::logf(total[0]);
}

template <class T>
void attention_block(const AttentionArgs& args, const AttentionBlock& block,
                     const AttentionScratch& scratch) {
  const AttentionRows rows(args, block);
  const Span& span = rows.span;
  const int64_t count = block.r1 - block.r0;
  const AttentionTiles tiles = attention_tiles(args, count);
  AttentionRow row[kAttentionRows];
  for (int64_t r = 0; r < count; ++r) {
    row[r] = {rows.seen(r), -INFINITY, zero()};
    float* tile = scratch.q + r / tiles.rows * tiles.q_size;
    stage_row<Fp32>(row_in<T>(args.q, span.q_start + rows.query(r), rows.head(r)), args.d,
                    tiles.rows, tile + r % tiles.rows * kChunk);
  }
  __builtin_memset(scratch.out, 0, count * args.e * sizeof(float));

  const T* k = row_in<T>(args.k, span.k_start, block.kv_head);
  const T* v = row_in<T>(args.v, span.k_start, block.kv_head);
  // Where more than one tile reads the values, they are widened once.
  const bool widen = sizeof(T) < sizeof(float) && count > tiles.rows;
  const KeyRange seen = {row[0].seen.from, row[count - 1].seen.to};  // by any row
  int64_t first = seen.from / kAttentionKeys * kAttentionKeys;
  for (; first < seen.to; first += kAttentionKeys) {
    const int64_t keys = in_block(seen, first).to;
    read_keys<T>({k + first * args.k.row, args.k.row}, keys, args.d, tiles, scratch.k);
    const T* values = v + first * args.v.row;
    if (!widen) {
      take_keys(rows, tiles, row, count, first, values, args.v.row, scratch);
      continue;
    }
    for (int64_t i = 0; i < keys; ++i) {
      widen_to(scratch.v + i * args.e, values + i * args.v.row, args.e);
    }
    take_keys(rows, tiles, row, count, first, scratch.v, args.e, scratch);
  }

  for (int64_t r = 0; r < count; ++r) {
    float* sums = scratch.out + r * args.e;
    float log_sum = INFINITY;
    if (!row[r].seen.empty()) log_sum = normalize(row[r], args.mask.data, sums, args.e);
    if (args.log_sums) args.log_sums[rows.place(r)] = log_sum;
    round_to(static_cast<T*>(args.out) + rows.place(r) * args.e, sums, args.e);
  }
}

}  // namespace
}  // namespace accel_cpu
