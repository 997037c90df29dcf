// The gradients of attention's queries, keys and values on one thread, written over the vectors of
// the vec_*.h included before it (Dao 2023, FlashAttention-2).
//
// Of the rows of a span beside one kv head, kAttentionPart at a time, a block after the other
// passes by each block of keys. Of a pair of blocks the scores are computed again, and of them,
// with the logs of the sums that the forward kept, probabilities p; with dp = dy v^T,
//
//     dv += p^T dy      ds = p (dp - mean)      dq += ds k      dk += ds^T q
//
// where a row's mean, the sum of p dp, is dy . y. All five products are of squares of kSide rows
// and columns, summed a square at a time: of a row of dq in the order of the keys, of a key in that
// of the rows. So the bits follow from the span alone.
#pragma once

#include "attention_scores.h"
#include "linear_tile.h"
#include "row_sum.h"

namespace accel_cpu {
namespace {

constexpr int64_t kSide = kAttentionKeys;
static_assert(kSide == kChunk && kSide % kLanes == 0);

constexpr int kSquareRows = tile_rows(kSide);  // of a tile
constexpr int64_t kSquareColumns = tile_vectors(kSquareRows) * kLanes;
static_assert((kSide + kSquareRows - 1) / kSquareRows * kSquareRows * kSide <= kAttentionSquare);

// Where a tile finds w in a square of its rows, k after k.
struct InSquare {
  using Operand = Vec;
  const float* w;
  template <int C>
  Vec at(int64_t step, int c) const {
    return load(w + step * kSide + c * kLanes);
  }
  template <int C>
  void prefetch(int64_t) const {}
  template <int R, int C>
  void scale(int64_t, Vec (&)[R * C]) const {}
};

// The part of a square, or of two multiplied ones, that is there.
struct Size {
  int64_t rows, columns, steps;
};

// out = x w, or more where it `adds`: x [rows, steps], w [steps, columns].
[[gnu::noinline]] void multiply(const float* x, const float* w, Size size, bool adds, float* out) {
  for (int64_t n = 0; n < size.columns; n += kSquareColumns) {
    for (int64_t r = 0; r < size.rows; r += kSquareRows) {
      const TileSums to = {out + r * kSide + n, kSide};
      linear_tile<Fp32, kSquareRows>(x + r * kSide, InSquare{w + n}, size.steps,
                                     adds ? to : TileSums{}, to);
    }
  }
}

// out[j][i] = a[i][j]
inline void turn(const float* a, int64_t rows, int64_t columns, float* out) {
  for (int64_t i = 0; i < rows; i += kLanes) {
    for (int64_t j = 0; j < columns; j += kLanes) {
      Vec lanes[kLanes];
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l) lanes[l] = load(a + (i + l) * kSide + j);
      transpose(lanes);
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l) store(out + (j + l) * kSide + i, lanes[l]);
    }
  }
}

// Calls f(square, from, columns) for the squares that `width` elements take, one at least: a sum
// of nothing is 0.
template <class F>
void for_squares(int64_t width, F f) {
  int64_t i = 0;
  do {
    f(i / kSide * kAttentionSquare, i, smaller(kSide, width - i));
    i += kSide;
  } while (i < width);
}

// Elements of the squares that `width` elements take.
inline int64_t squares(int64_t width) {
  return width > kSide ? (width + kSide - 1) / kSide * kAttentionSquare : kAttentionSquare;
}

// A row of a head as the r-th of its squares, in fp32.
template <class T>
void spread(const Heads& heads, int64_t row, int64_t head, int64_t width, int64_t r, float* out) {
  const T* from = row_in<T>(heads, row, head);
  for_squares(width, [&](int64_t square, int64_t i, int64_t columns) {
    widen_to(out + square + r * kSide, from + i, columns);
  });
}

void spread(DType dtype, const Heads& heads, int64_t row, int64_t head, int64_t width, int64_t r,
            float* out) {
  switch (dtype) {
    case DType::f32: return spread<float>(heads, row, head, width, r, out);
    case DType::bf16: return spread<bf16>(heads, row, head, width, r, out);
    case DType::f16: return spread<f16>(heads, row, head, width, r, out);
  }
}

// Zeros as the r-th row of squares.
void blank(int64_t width, int64_t r, float* out) {
  for_squares(width, [&](int64_t square, int64_t, int64_t columns) {
    __builtin_memset(out + square + r * kSide, 0, columns * sizeof(float));
  });
}

// The r-th row of squares is added to `width` elements.
void gather(const float* squares, int64_t r, int64_t width, float* total) {
  for_squares(width, [&](int64_t square, int64_t i, int64_t columns) {
    add_in_place(total + i, squares + square + r * kSide, columns);
  });
}

// Some rows of a span beside one kv head, kSide at most, in fp32.
struct RowBlock {
  AttentionRows rows;
  int64_t count;
  float *q, *dy;  // squares
  float* means;

  bool see(int64_t first) const {  // any of the kSide keys from `first` on
    return rows.seen(count - 1).to > first && rows.seen(0).from < first + kSide;
  }
};

// The gradients of a span beside one kv head.
struct AttentionGradient {
  const AttentionBackwardArgs& args;
  const AttentionArgs& of;
  const AttentionBackwardScratch& scratch;
  int64_t number, kv_head;
  const Span& span;

  // Rows [r, r1), the b-th block of those at hand.
  RowBlock rows_of(int64_t b, int64_t r, int64_t r1) const {
    const int64_t count = smaller(kSide, r1 - r);
    return {{of, number, kv_head, r}, count, scratch.q + b * squares(of.d),
            scratch.dy + b * squares(of.e), scratch.means + b * kSide};
  }

  float log_sum(const AttentionRows& rows, int64_t r) const {
    return args.log_sums[rows.place(r)];
  }

  // Rows that see nothing are zeros: whatever is there, a NaN times 0 is one.
  void read_rows(const RowBlock& block) const {
    for (int64_t r = 0; r < block.count; ++r) {
      const int64_t row = span.q_start + block.rows.query(r), head = block.rows.head(r);
      block.means[r] = 0;
      if (log_sum(block.rows, r) == INFINITY) {
        blank(of.d, r, block.q);
        blank(of.e, r, block.dy);
        continue;
      }
      float* y = scratch.dv;
      spread(of.dtype, of.q, row, head, of.d, r, block.q);
      spread(of.dtype, args.grad, row, head, of.e, r, block.dy);
      spread(of.dtype, args.out, row, head, of.e, 0, y);
      for_squares(of.e, [&](int64_t at, int64_t, int64_t columns) {
        const float* dy = block.dy + at + r * kSide;
        block.means[r] += row_sum(columns, [=](Vec acc, int64_t i, auto... n) {
          return madd(load(dy + i, n...), load(y + at + i, n...), acc);
        });
      });
    }
  }

  void read_keys(int64_t first, int64_t count) const {
    const int64_t start = span.k_start + first;
    float* v = scratch.dv;  // until they are turned
    for (int64_t i = 0; i < count; ++i) {
      spread(of.dtype, of.k, start + i, kv_head, of.d, i, scratch.k);
      spread(of.dtype, of.v, start + i, kv_head, of.e, i, v);
    }
    for_squares(of.d, [&](int64_t at, int64_t, int64_t columns) {
      turn(scratch.k + at, count, columns, scratch.k_turned + at);
    });
    for_squares(of.e, [&](int64_t at, int64_t, int64_t columns) {
      turn(v + at, count, columns, scratch.v_turned + at);
    });
    __builtin_memset(scratch.dk, 0, squares(of.d) * sizeof(float));
    __builtin_memset(scratch.dv, 0, squares(of.e) * sizeof(float));
  }

  // Makes of row r's products with keys, s, what is left of their probabilities, and of those of
  // its gradient with values, dp, the gradient of the products.
  void weigh_row(const RowBlock& block, int64_t r, int64_t first, float* s, float* dp) const {
    const KeyRange seen = in_block(block.rows.seen(r), first);
    float slopes[kSide], left[kSide];
    const bool adjusted = adjusts(of), capped = of.softcap != 0, drops = of.dropout.drops;
    if (adjusted && !seen.empty()) adjust(block.rows, r, first, seen, s, slopes);
    if (drops) find_left(block.rows, r, first, left);
    const Vec scale = broadcast(of.scale), before = broadcast(adjusted ? 1.0f : of.scale);
    const Vec total = broadcast(log_sum(block.rows, r)), mean = broadcast(block.means[r]);
    for (int64_t i = seen.from / kLanes * kLanes; i < seen.to; i += kLanes) {
      const Vec p = exp(sub(mul(load(s + i), before), total));
      const Vec share = drops ? load(left + i) : broadcast(1.0f);
      Vec dz = mul(p, sub(mul(load(dp + i), share), mean));
      if (capped) dz = mul(dz, load(slopes + i));
      store(s + i, mul(p, share));
      store(dp + i, mul(dz, scale));
    }
    const auto hide = [&](float* a) {
      __builtin_memset(a, 0, seen.from * sizeof(float));
      __builtin_memset(a + seen.to, 0, (kSide - seen.to) * sizeof(float));
    };
    hide(s);
    hide(dp);
  }

  // What the rows of a block and the `keys` keys from `first` on add to each other's gradients.
  void take(const RowBlock& block, int64_t first, int64_t keys) const {
    float *p = scratch.p, *ds = scratch.ds;
    const int64_t rows = block.count;
    for_squares(of.d, [&](int64_t at, int64_t i, int64_t steps) {
      multiply(block.q + at, scratch.k_turned + at, {rows, keys, steps}, i > 0, p);
    });
    for_squares(of.e, [&](int64_t at, int64_t i, int64_t steps) {
      multiply(block.dy + at, scratch.v_turned + at, {rows, keys, steps}, i > 0, ds);
    });
    for (int64_t r = 0; r < rows; ++r) weigh_row(block, r, first, p + r * kSide, ds + r * kSide);
    if (args.dv) {
      turn(p, rows, keys, scratch.p_turned);
      for_squares(of.e, [&](int64_t at, int64_t, int64_t columns) {
        multiply(scratch.p_turned, block.dy + at, {keys, columns, rows}, true, scratch.dv + at);
      });
    }
    if (args.dk) {
      turn(ds, rows, keys, scratch.ds_turned);
      for_squares(of.d, [&](int64_t at, int64_t, int64_t columns) {
        multiply(scratch.ds_turned, block.q + at, {keys, columns, rows}, true, scratch.dk + at);
      });
    }
    if (!args.dq) return;
    for_squares(of.d, [&](int64_t at, int64_t i, int64_t columns) {
      multiply(ds, scratch.k + at, {rows, columns, keys}, false, scratch.found);
      for (int64_t r = 0; r < rows; ++r) {
        add_in_place(args.dq + block.rows.place(r) * of.d + i, scratch.found + r * kSide, columns);
      }
    });
  }

  void add_keys(int64_t first, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = (span.k_start + first + i) * of.g + kv_head;
      if (args.dk) gather(scratch.dk, i, of.d, args.dk + place * of.d);
      if (args.dv) gather(scratch.dv, i, of.e, args.dv + place * of.e);
    }
  }
};

void attention_backward_block(const AttentionBackwardArgs& args,
                              const AttentionBackwardBlock& block,
                              const AttentionBackwardScratch& scratch) {
  const Span& span = args.of.spans[block.span];
  const AttentionGradient gradient = {args, args.of, scratch, block.span, block.kv_head, span};
  for (int64_t r0 = block.r0; r0 < block.r1; r0 += kAttentionPart) {
    const int64_t r1 = smaller(block.r1, r0 + kAttentionPart);
    const auto for_rows = [&](auto f) {
      for (int64_t r = r0; r < r1; r += kSide) f(gradient.rows_of((r - r0) / kSide, r, r1));
    };
    for_rows([&](const RowBlock& rows) { gradient.read_rows(rows); });
    for (int64_t first = block.k0; first < block.k1; first += kSide) {
      const int64_t keys = smaller(kSide, block.k1 - first);
      bool seen = false;
      for_rows([&](const RowBlock& rows) { seen |= rows.see(first); });
      if (!seen) continue;
      gradient.read_keys(first, keys);
      for_rows([&](const RowBlock& rows) {
        if (rows.see(first)) gradient.take(rows, first, keys);
      });
      gradient.add_keys(first, keys);
    }
  }
}

}  // namespace
}  // namespace accel_cpu
