// The rows of a block of attention: which query and head each is, which keys it sees, and what
// becomes of its products with them. Written over the vectors of the vec_*.h included before it.
//
// All of it follows from the row's own query, and from keys counted from the first of its span.
#pragma once

#include <float.h>
#include <math.h>

#include "exponential.h"
#include "random_bits.h"
#include "weight_panel.h"

namespace accel_cpu {
namespace {

// Keys [from, to).
struct KeyRange {
  int64_t from, to;
  bool empty() const { return from >= to; }
};

// Of the keys of a range those of the block [first, first + kAttentionKeys), counted from `first`.
inline KeyRange in_block(const KeyRange& keys, int64_t first) {
  const int64_t from = keys.from - first, to = keys.to - first;
  return {from < 0 ? 0 : smaller(from, kAttentionKeys), to < 0 ? 0 : smaller(to, kAttentionKeys)};
}

// The rows of a span beside one kv head. Both ends of what they see ascend from row to row.
struct AttentionRows {
  const AttentionArgs& args;
  const Span& span;
  int64_t number, kv_head, r0;

  AttentionRows(const AttentionArgs& of, int64_t span, int64_t kv_head, int64_t r0)
      : args(of), span(of.spans[span]), number(span), kv_head(kv_head), r0(r0) {}

  int64_t group() const { return args.h / args.g; }
  int64_t query(int64_t r) const { return (r0 + r) / group(); }
  int64_t head(int64_t r) const { return kv_head * group() + (r0 + r) % group(); }
  // Its place in what has a row for each query and head.
  int64_t place(int64_t r) const { return (span.q_start + query(r)) * args.h + head(r); }
  // The key it stands at.
  int64_t at(int64_t r) const { return query(r) + span.k_len - span.q_len; }
  KeyRange seen(int64_t r) const {
    const int64_t last = args.causal ? at(r) + 1 : smaller(at(r) + args.window, span.k_len);
    const int64_t first = at(r) - args.window + 1;
    return {first < 0 ? 0 : first, last < 0 ? 0 : last};
  }
};

template <class T>
const T* row_in(const Heads& heads, int64_t row, int64_t head) {
  return static_cast<const T*>(heads.data) + row * heads.row + head * heads.head;
}

// What is hidden stays so, whatever it holds: -inf added to a NaN would be one.
template <class T>
void add_mask(const void* mask, int64_t offset, float* s, int64_t keys) {
  const T* from = static_cast<const T*>(mask) + offset;
  for_each_vector(keys, [=](int64_t i, auto... n) {
    const Vec added = load(from + i, n...);
    store(s + i, where_less(added, broadcast(-FLT_MAX), added, add(load(s + i), added)));
  });
}

inline void add_mask(const AttentionRows& rows, int64_t r, int64_t first, float* s, int64_t keys) {
  const ScoreMask& mask = rows.args.mask;
  const int64_t offset =
      rows.number * mask.span + rows.head(r) * mask.head + rows.query(r) * mask.query + first;
  switch (rows.args.dtype) {
    case DType::f32: return add_mask<float>(mask.data, offset, s, keys);
    case DType::bf16: return add_mask<bf16>(mask.data, offset, s, keys);
    case DType::f16: return add_mask<f16>(mask.data, offset, s, keys);
  }
}

// Whether scores are more than products times scale, or keys before the last one unseen.
inline bool adjusts(const AttentionArgs& args) {
  return args.softcap != 0 || args.mask.data || args.slopes || args.window != kNoWindow;
}

// Makes scores of row r of its products with the keys from `first` on, of which it sees `seen`;
// -inf before those. Where they are capped, `slopes` gets the derivative of that, if it is there.
[[gnu::noinline]] void adjust(const AttentionRows& rows, int64_t r, int64_t first, KeyRange seen,
                              float* s, float* slopes = nullptr) {
  const AttentionArgs& args = rows.args;
  for (int64_t i = 0; i < seen.to; i += kLanes) {
    store(s + i, mul(load(s + i), broadcast(args.scale)));
  }
  if (args.softcap != 0) {
    const Vec cap = broadcast(args.softcap);
    for (int64_t i = 0; i < seen.to; i += kLanes) {
      const Vec t = tanh(div(load(s + i), cap));
      store(s + i, mul(cap, t));
      if (slopes) store(slopes + i, sub(broadcast(1.0f), mul(t, t)));
    }
  }
  if (args.mask.data) add_mask(rows, r, first, s, seen.to);
  if (args.slopes) {
    const Vec slope = broadcast(args.slopes[rows.head(r)]);
    const int64_t nearest = first - rows.at(r);
    for (int64_t i = 0; i < seen.to; i += kLanes) {
      const Vec distance = add(lane_index(), broadcast(static_cast<float>(nearest + i)));
      store(s + i, madd(slope, distance, load(s + i)));
    }
  }
  for (int64_t i = 0; i < seen.from; ++i) s[i] = -INFINITY;
}

// What dropout leaves of the probabilities of row r for the keys from `first` on: the scale, or 0.
[[gnu::noinline]] void find_left(const AttentionRows& rows, int64_t r, int64_t first,
                                 float (&left)[kAttentionKeys]) {
  const int64_t stream = (rows.number * rows.args.h + rows.head(r)) << 32;
  survivors(rows.args.dropout, stream + rows.query(r), first, kAttentionKeys, left);
}

}  // namespace
}  // namespace accel_cpu
