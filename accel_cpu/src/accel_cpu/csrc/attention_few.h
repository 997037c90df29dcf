// Attention on one thread of few rows beside each of some kv heads, as in a decode step, written
// over the vectors of the vec_*.h included before it. Each row as in attention_row.h.
//
// Time goes into reading keys and values, which lie head beside head: from few of them to the next
// all heads take what is theirs, so that memory is read from one end to the other.
#pragma once

#include "attention_row.h"
#include "linear_few.h"

namespace accel_cpu {
namespace {

// Keys whose values all heads take before the next ones, and how many keys ahead values are asked
// for. Without asking 4096 keys of 4 heads of 64 are read at 6 GB/s in place of 9, where a sum of
// as much memory reaches 16 (fp32, one Zen 3 core).
constexpr int64_t kValueKeys = 8, kKeysAhead = 16;

// sums[r][e + j] += the sum of weights[r][key] v[key][e + j], for R rows and C vectors of j, or the
// n elements of one.
template <int R, int C, class T, class... N>
void add_few_values(const float* weights, int64_t keys, const T* v, int64_t stride, float* sums,
                    int64_t width, Ahead& ahead, N... n) {
  Vec acc[R * C];
#pragma GCC unroll 24
  for (int j = 0; j < R * C; ++j) acc[j] = load(sums + j / C * width + j % C * kLanes, n...);
  for (int64_t key = 0; key < keys; ++key) {
    ahead.ask(C * kLanes * sizeof(T));
    Vec value[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) value[c] = load(v + key * stride + c * kLanes, n...);
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) {
      const Vec weight = broadcast(weights[r * kAttentionKeys + key]);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) acc[r * C + c] = madd(weight, value[c], acc[r * C + c]);
    }
  }
#pragma GCC unroll 24
  for (int j = 0; j < R * C; ++j) store(sums + j / C * width + j % C * kLanes, acc[j], n...);
}

// The same for all `width` elements of a value, and 1 to R rows.
template <int R = kFewRows, class T>
void add_few_values(int rows, const float* weights, int64_t keys, const T* v, int64_t stride,
                    float* sums, int64_t width, Ahead& ahead) {
  if constexpr (R > 1) {
    if (rows < R) return add_few_values<R - 1>(rows, weights, keys, v, stride, sums, width, ahead);
  }
  constexpr int C = tile_vectors(R);
  int64_t e = 0;
  for (; e + C * kLanes <= width; e += C * kLanes) {
    add_few_values<R, C>(weights, keys, v + e, stride, sums + e, width, ahead);
  }
  for_each_vector(width - e, [&](int64_t i, auto... n) {
    add_few_values<R, 1>(weights, keys, v + e + i, stride, sums + e + i, width, ahead, n...);
  });
}

// Rows beside each of some kv heads, in tiles of R rows, the last of which may lack some: of those
// nothing is read.
template <class T>
struct FewRows {
  const AttentionArgs& args;
  const AttentionBlock& block;
  AttentionScratch scratch;
  int64_t count = block.r1 - block.r0, heads = block.g1 - block.g0;
  int R = tile_rows(count, kFewRows);
  int64_t each = (count + R - 1) / R * R;  // places of a head
  int64_t q_size = (args.d + kChunk - 1) / kChunk * R * kChunk;  // of a tile
  int64_t end = 0;  // of the keys that any row sees
  AttentionRow row[kAttentionRows];
  KeyRange seen[kAttentionRows];  // of the block of keys
  float factor[kAttentionRows];

  AttentionRows rows(int64_t i) const { return {args, block.span, block.g0 + i, block.r0}; }
  float* q(int64_t tile) const { return scratch.q + tile * q_size; }
  float* weights(int64_t place) const { return scratch.weights + place * kAttentionKeys; }
  float* sums(int64_t place) const { return scratch.sums + place * args.e; }
  float* out(int64_t place) const { return scratch.out + place * args.e; }
  const T* at(const Heads& of, int64_t key, int64_t i) const {
    return row_in<T>(of, args.spans[block.span].k_start + key, block.g0 + i);
  }

  // f(i, r, place)
  template <class F>
  void for_rows(F f) const {
    for (int64_t i = 0; i < heads; ++i) {
      for (int64_t r = 0; r < count; ++r) f(i, r, i * each + r);
    }
  }

  // What head i asks for while it reads: the keys or values from `key` on, of all heads where those
  // lie side by side, in which the heads share what `asked` has come to, or else its own.
  void look_ahead(Ahead& asked, const Heads& of, int64_t width, int64_t key, int64_t i) const {
    const bool beside = of.head == width;
    if (beside && i > 0) return;
    asked = Ahead(at(of, key, i), of.row, beside ? heads * width : width, end - key);
  }

  // Of `keys` keys from `first` on.
  void score(int64_t first, int64_t keys) const {
    // One row's sums would wait for each addition's end.
    const bool two = R == 1;
    const auto tile = two ? transposed_tile<Widened<T>, 1, 2> : transposed_tile_of<Widened<T>>(R);
    const int64_t together = two ? 2 * kLanes : kLanes;
    Ahead ahead, none;
    for (int64_t n = 0; n < keys; n += together) {
      for (int64_t i = 0; i < heads; ++i) {
        look_ahead(ahead, args.k, args.d, first + n + together, i);
        for (int64_t r = 0; r < count; r += R) {
          const int64_t place = i * each + r;
          const InRows<Widened<T>> w = {at(args.k, first + n, i), args.k.row,
                                        smaller(keys - n, together), args.d, r ? none : ahead};
          tile(q(place / R), w, args.d, {}, {weights(place) + n, kAttentionKeys});
        }
      }
    }
  }

  void weigh(int64_t first) {
    for_rows([&](int64_t i, int64_t r, int64_t place) {
      seen[place] = in_block(row[place].seen, first);
      if (seen[place].empty()) return;
      factor[place] =
          accel_cpu::weigh(rows(i), r, first, seen[place], weights(place), row[place]);
    });
  }

  // The values of keys [n, n1) of the block to the rows that see them, together if all do.
  void add_values(int64_t first, int64_t n, int64_t n1, int64_t i, Ahead& ahead) const {
    Ahead none;
    const auto add = [&](int64_t place, int rows, KeyRange keys) {
      add_few_values(rows, weights(place) + keys.from, keys.to - keys.from,
                     at(args.v, first + keys.from, i), args.v.row, sums(place), args.e,
                     place == i * each ? ahead : none);
    };
    const int64_t begin = i * each;
    if (seen[begin].to >= n1 && seen[begin + count - 1].from <= n) {  // both ends ascend
      for (int64_t r = 0; r < count; r += kFewRows) {
        add(begin + r, static_cast<int>(smaller(count - r, kFewRows)), {n, n1});
      }
      return;
    }
    for (int64_t place = begin; place < begin + count; ++place) {
      const KeyRange keys = {n > seen[place].from ? n : seen[place].from,
                             smaller(n1, seen[place].to)};
      if (!keys.empty()) add(place, 1, keys);
    }
  }

  // The sums of the weighted values of a block of keys.
  void sum_values(int64_t first, int64_t keys) const {
    __builtin_memset(scratch.sums, 0, heads * each * args.e * sizeof(float));
    Ahead ahead;
    for (int64_t n = 0; n < keys; n += kValueKeys) {
      for (int64_t i = 0; i < heads; ++i) {
        look_ahead(ahead, args.v, args.e, first + n + kKeysAhead, i);
        add_values(first, n, smaller(n + kValueKeys, keys), i, ahead);
      }
    }
  }

  void gather(int64_t place) const {
    if (seen[place].empty()) return;
    for_each_vector(args.e, [&](int64_t j, auto... n) {
      float* p = out(place) + j;
      store(p, madd(load(p, n...), broadcast(factor[place]), load(sums(place) + j, n...)), n...);
    });
  }

  // Stages the queries. Returns the keys that any row sees.
  KeyRange begin_rows() {
    for_rows([&](int64_t i, int64_t r, int64_t place) {
      row[place] = begin<T>(rows(i), r, R, q(place / R) + place % R * kChunk);
    });
    const KeyRange any = {row[0].seen.from, row[count - 1].seen.to};
    end = any.to;
    return any;
  }

  void run() {
    const KeyRange any = begin_rows();
    __builtin_memset(scratch.out, 0, heads * each * args.e * sizeof(float));
    int64_t first = any.from / kAttentionKeys * kAttentionKeys;
    for (; first < any.to; first += kAttentionKeys) {
      const int64_t keys = in_block(any, first).to;
      score(first, keys);
      weigh(first);
      sum_values(first, keys);
      for_rows([&](int64_t, int64_t, int64_t place) { gather(place); });
    }
    for_rows([&](int64_t i, int64_t r, int64_t place) {
      finish<T>(rows(i), r, row[place], out(place));
    });
  }
};

}  // namespace
}  // namespace accel_cpu
