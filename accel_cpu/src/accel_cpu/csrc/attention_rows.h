// A block of attention on one thread, written over the vectors of the vec_*.h included before it.
//
// A row is one query in one head. It takes its keys in blocks of kAttentionKeys, counted from the
// first key of its span, and stops at the last key it sees. Of each block it sums the weights
// exp(score - the largest score so far) and the weighted values, key after key; then it adds them
// to what it has, scaled from the largest score until then to this one. A score is summed in an
// order that d alone fixes. None of this depends on the rows under way beside it: a query has the
// same bits in a prefill, in a decode step, and wherever its keys lie.
#pragma once

#include <math.h>

#include "exponential.h"
#include "linear_tile.h"
#include "row_sum.h"

namespace accel_cpu {
namespace {

static_assert(kAttentionKeys == kTileColumns && kAttentionRows % kTileRows == 0);

// A row so far.
struct AttentionRow {
  int64_t seen;  // the keys it sees: the first ones of its span
  float top;     // the largest score
  Vec weights;   // lane by lane the sum of exp(score - top)
};

// Of the keys [first, first + kAttentionKeys) of the span, those that a row sees.
inline int64_t seen_of_block(const AttentionRow& row, int64_t first) {
  const int64_t keys = row.seen - first;
  return keys < 0 ? 0 : keys < kAttentionKeys ? keys : kAttentionKeys;
}

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
  float factor[kTileRows];  // of the values of earlier blocks
  int64_t keys[kTileRows];  // that the row sees, ascending
};

// out[r][e + j] = factor[r] out[r][e + j] + the sum of of_key[r][key] v[key][e + j] over the keys
// that row r sees, for R rows from the first on and C vectors of j, or the n elements of one.
template <int R, int C, class T, class... N>
void add_values_tile(const Weights& weights, int first, const T* v, int64_t stride, float* out,
                     int64_t width, int64_t e, N... n) {
  const auto* of_key = weights.of_key + first;
  const int64_t* keys = weights.keys + first;
  // Unrolled by request, as in linear_tile.
  Vec acc[R * C];
#pragma GCC unroll 24
  for (int j = 0; j < R * C; ++j) acc[j] = zero();

  int64_t key = 0;
  for (; key < keys[0]; ++key) {  // which all rows see
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
    for (int64_t own = key; own < keys[r]; ++own) {
      const Vec weight = broadcast(of_key[r][own]);
#pragma GCC unroll 24
      for (int c = 0; c < C; ++c) {
        const Vec value = load(v + own * stride + e + c * kLanes, n...);
        acc[r * C + c] = madd(weight, value, acc[r * C + c]);
      }
    }
    if (keys[r] == 0) continue;
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

// Takes `rows` rows through the keys of their span from `first` on, as far as they see the next
// kAttentionKeys: `keys` of those, whose panels and values, [keys, e], are at hand.
template <class V>
void take_keys(const AttentionArgs& args, const AttentionTiles& tiles, AttentionRow* row,
               int64_t rows, int64_t first, const V* v, int64_t v_stride,
               const AttentionScratch& scratch) {
  const auto scores = linear_tile_of<Fp32>(tiles.rows);
  const int64_t columns = tiles.vectors * kLanes;
  for (int64_t m = 0; m < rows; m += tiles.rows) {
    const int count = static_cast<int>(smaller(rows - m, tiles.rows));
    const int64_t keys = seen_of_block(row[m + count - 1], first);
    if (keys == 0) continue;
    Weights weights;
    for (int64_t n = 0; n < keys; n += columns) {
      scores(scratch.q + m / tiles.rows * tiles.q_size,
             {reinterpret_cast<const Vec*>(scratch.k + n / columns * tiles.k_size)}, args.d, {},
             {weights.of_key[0] + n, kAttentionKeys});
    }
    for (int r = 0; r < count; ++r) {
      weights.keys[r] = seen_of_block(row[m + r], first);
      if (weights.keys[r] == 0) continue;
      weights.factor[r] = weigh(weights.of_key[r], weights.keys[r], args.scale, row[m + r]);
    }
    for (int r = 0; r < count; r += kValueRows) {
      const int values = static_cast<int>(smaller(count - r, kValueRows));
      add_values(values, weights, r, v, v_stride, scratch.out + (m + r) * args.e, args.e);
    }
  }
}

template <class T>
void attention_block(const AttentionArgs& args, const AttentionBlock& block,
                     const AttentionScratch& scratch) {
  const Span& span = args.spans[block.span];
  const int64_t group = args.h / args.g;
  const int64_t rows = block.r1 - block.r0;
  const auto query_of = [&](int64_t r) { return (block.r0 + r) / group; };
  const auto head_of = [&](int64_t r) { return block.kv_head * group + (block.r0 + r) % group; };

  const AttentionTiles tiles = attention_tiles(args, rows);
  AttentionRow row[kAttentionRows];
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t last = args.causal ? query_of(r) + span.k_len - span.q_len : span.k_len - 1;
    row[r] = {last < 0 ? 0 : last + 1, -INFINITY, zero()};
    const T* head = static_cast<const T*>(args.q.data) + head_of(r) * args.q.head;
    float* tile = scratch.q + r / tiles.rows * tiles.q_size;
    stage_row<Fp32>(head + (span.q_start + query_of(r)) * args.q.row, args.d, tiles.rows,
                          tile + r % tiles.rows * kChunk);
  }
  __builtin_memset(scratch.out, 0, rows * args.e * sizeof(float));

  const T* k = static_cast<const T*>(args.k.data) + block.kv_head * args.k.head;
  const T* v = static_cast<const T*>(args.v.data) + block.kv_head * args.v.head;
  // Where more than one tile reads the values, they are widened once.
  const bool widen = sizeof(T) < sizeof(float) && rows > tiles.rows;
  const int64_t seen = row[rows - 1].seen;  // by any row
  for (int64_t first = 0; first < seen; first += kAttentionKeys) {
    const int64_t keys = seen_of_block(row[rows - 1], first), start = span.k_start + first;
    read_keys<T>({k + start * args.k.row, args.k.row}, keys, args.d, tiles, scratch.k);
    const T* values = v + start * args.v.row;
    if (!widen) {
      take_keys(args, tiles, row, rows, first, values, args.v.row, scratch);
      continue;
    }
    for (int64_t i = 0; i < keys; ++i) {
      widen_to(scratch.v + i * args.e, values + i * args.v.row, args.e);
    }
    take_keys(args, tiles, row, rows, first, scratch.v, args.e, scratch);
  }

  for (int64_t r = 0; r < rows; ++r) {
    float* sums = scratch.out + r * args.e;
    if (row[r].seen > 0) {
      const Vec lanes[4] = {row[r].weights, zero(), zero(), zero()};
      float total[4];
      reduce4(lanes, total);
      for_each_vector(args.e, [&](int64_t i, auto... n) {
        store(sums + i, div(load(sums + i, n...), broadcast(total[0])), n...);
      });
    }
    const int64_t out = (span.q_start + query_of(r)) * args.h + head_of(r);
    round_to(static_cast<T*>(args.out) + out * args.e, sums, args.e);
  }
}

}  // namespace
}  // namespace accel_cpu
