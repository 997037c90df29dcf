// What a row of attention, one query in one head, goes through, written over the vectors of the
// vec_*.h included before it.
//
// It takes its keys in blocks of kAttentionKeys, counted from the first key of its span: from the
// block of the first key it sees on, and no further than the last it sees. Of each block it sums
// the weights exp(score - the largest score so far) and the weighted values, key after key; then it
// adds them to what it has, scaled from the largest score until then to this one. A score is summed
// in an order that d alone fixes. None of this depends on the rows under way beside it: a query has
// the same bits in a prefill, in a decode step, and wherever its keys lie.
#pragma once

#include "attention_scores.h"
#include "row_sum.h"

namespace accel_cpu {
namespace {

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

// Makes weights of the products of row r with the keys from `first` on, of which it sees `seen`.
// Returns what the values of earlier blocks must be multiplied by.
inline float weigh(const AttentionRows& rows, int64_t r, int64_t first, KeyRange seen, float* s,
                   AttentionRow& row) {
  const AttentionArgs& args = rows.args;
  const bool adjusted = adjusts(args);
  if (adjusted) adjust(rows, r, first, seen, s);
  const float factor = weigh(s, seen.to, adjusted ? 1.0f : args.scale, row);
  if (args.dropout.drops) {
    float left[kAttentionKeys];
    find_left(rows, r, first, left);
    keep(left, s, seen.to);
  }
  return factor;
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

// The row r in a tile of `tile` rows: nothing seen yet, its query staged.
template <class T>
AttentionRow begin(const AttentionRows& rows, int64_t r, int tile, float* q) {
  const T* query = row_in<T>(rows.args.q, rows.span.q_start + rows.query(r), rows.head(r));
  stage_row<Fp32>(query, rows.args.d, tile, q);
  return {rows.seen(r), -INFINITY, zero()};
}

template <class T>
void finish(const AttentionRows& rows, int64_t r, const AttentionRow& row, float* sums) {
  const AttentionArgs& args = rows.args;
  float log_sum = INFINITY;
  if (!row.seen.empty()) log_sum = normalize(row, args.mask.data, sums, args.e);
  if (args.log_sums) args.log_sums[rows.place(r)] = log_sum;
  round_to(static_cast<T*>(args.out) + rows.place(r) * args.e, sums, args.e);
}

}  // namespace
}  // namespace accel_cpu
