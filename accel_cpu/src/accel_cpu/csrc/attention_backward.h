// The gradients of attention's queries, keys and values on one thread, written over the vectors of
// the vec_*.h included before it (Dao 2023, FlashAttention-2).
//
// The rows of a span beside one kv head pass by a block of its keys, a block of them after the
// other. Of each pair of blocks the scores are computed again, and of them, with the logs of the
// sums that the forward kept, probabilities p; with dp = dy v^T,
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

// A row of a head as the r-th of its squares, in fp32.
void spread(DType dtype, const Heads& heads, int64_t row, int64_t head, int64_t width, int64_t r,
            float* squares) {
  const int64_t at = row * heads.row + head * heads.head;
  for_squares(width, [&](int64_t square, int64_t i, int64_t columns) {
    float* out = squares + square + r * kSide;
    switch (dtype) {
      case DType::f32: return widen_to(out, static_cast<const float*>(heads.data) + at + i, columns);
      case DType::bf16: return widen_to(out, static_cast<const bf16*>(heads.data) + at + i, columns);
      case DType::f16: return widen_to(out, static_cast<const f16*>(heads.data) + at + i, columns);
    }
  });
}

// The r-th row of squares is added to `width` elements.
void gather(const float* squares, int64_t r, int64_t width, float* total) {
  for_squares(width, [&](int64_t square, int64_t i, int64_t columns) {
    add_in_place(total + i, squares + square + r * kSide, columns);
  });
}

// The rows of a span beside one kv head and a block of its keys.
struct AttentionGradient {
  const AttentionBackwardArgs& args;
  const AttentionBackwardScratch& scratch;
  int64_t span, kv_head;

  const AttentionArgs& of() const { return args.of; }
  const Span& keys() const { return of().spans[span]; }
  AttentionRows rows_from(int64_t r0, int64_t r1) const {
    return {of(), {span, kv_head, r0, r1}};
  }
  float log_sum(const AttentionRows& rows, int64_t r) const {
    return args.log_sums[rows.place(r)];
  }

  void read_keys(int64_t first, int64_t count) const {
    const int64_t start = keys().k_start + first;
    for (int64_t i = 0; i < count; ++i) {
      spread(of().dtype, of().k, start + i, kv_head, of().d, i, scratch.k);
      spread(of().dtype, of().v, start + i, kv_head, of().e, i, scratch.dv);
    }
    for_squares(of().d, [&](int64_t at, int64_t, int64_t columns) {
      turn(scratch.k + at, count, columns, scratch.k_turned + at);
      __builtin_memset(scratch.dk + at, 0, kAttentionSquare * sizeof(float));
    });
    for_squares(of().e, [&](int64_t at, int64_t, int64_t columns) {
      turn(scratch.dv + at, count, columns, scratch.v_turned + at);
      __builtin_memset(scratch.dv + at, 0, kAttentionSquare * sizeof(float));
    });
  }

  // Of rows that see nothing zeros: whatever is there, a NaN times 0 is one.
  void read_rows(const AttentionRows& rows, int64_t count) const {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = keys().q_start + rows.query(r), head = rows.head(r);
      spread(of().dtype, of().q, row, head, of().d, r, scratch.q);
      spread(of().dtype, args.grad, row, head, of().e, r, scratch.dy);
      if (log_sum(rows, r) != INFINITY) continue;
      const auto blank = [&](float* squares) {
        return [=](int64_t at, int64_t, int64_t columns) {
          __builtin_memset(squares + at + r * kSide, 0, columns * sizeof(float));
        };
      };
      for_squares(of().d, blank(scratch.q));
      for_squares(of().e, blank(scratch.dy));
    }
  }

  // dy . y of each row.
  void find_means(const AttentionRows& rows, int64_t count, float* out) const {
    read_rows(rows, count);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t row = keys().q_start + rows.query(r);
      out[r] = 0;
      if (log_sum(rows, r) == INFINITY) continue;
      spread(of().dtype, args.out, row, rows.head(r), of().e, 0, scratch.dv);
      for_squares(of().e, [&](int64_t at, int64_t, int64_t columns) {
        const float *dy = scratch.dy + at + r * kSide, *y = scratch.dv + at;
        out[r] += row_sum(columns, [=](Vec acc, int64_t i, auto... n) {
          return madd(load(dy + i, n...), load(y + i, n...), acc);
        });
      });
    }
  }

  // Makes of row r's products with keys, s, what is left of their probabilities, and of those of
  // its gradient with values, dp, the gradient of the products.
  void weigh_row(const AttentionRows& rows, int64_t r, int64_t first, float mean, float* s,
                 float* dp) const {
    const KeyRange seen = in_block(rows.seen(r), first);
    float slopes[kSide], left[kSide];
    const bool adjusted = adjusts(of()), capped = of().softcap != 0, drops = of().dropout.drops;
    if (adjusted && !seen.empty()) adjust(rows, r, first, seen, s, slopes);
    if (drops) find_left(rows, r, first, left);
    const Vec scale = broadcast(adjusted ? 1.0f : of().scale), whole = broadcast(of().scale);
    const Vec log_sum = broadcast(this->log_sum(rows, r));
    for (int64_t i = seen.from / kLanes * kLanes; i < seen.to; i += kLanes) {
      const Vec p = exp(sub(mul(load(s + i), scale), log_sum));
      const Vec share = drops ? load(left + i) : broadcast(1.0f);
      Vec dz = mul(p, sub(mul(load(dp + i), share), broadcast(mean)));
      if (capped) dz = mul(dz, load(slopes + i));
      store(s + i, mul(p, share));
      store(dp + i, mul(dz, whole));
    }
    const auto hide = [&](float* a) {
      __builtin_memset(a, 0, seen.from * sizeof(float));
      __builtin_memset(a + seen.to, 0, (kSide - seen.to) * sizeof(float));
    };
    hide(s);
    hide(dp);
  }

  void take_rows(const AttentionRows& rows, int64_t count, int64_t first, int64_t key_count,
                 const float* means) const {
    const auto& [q, dy, k, k_turned, v_turned, dk, dv, p, p_turned, ds, ds_turned, found, _] =
        scratch;
    read_rows(rows, count);
    for_squares(of().d, [&](int64_t at, int64_t i, int64_t columns) {
      multiply(q + at, k_turned + at, {count, key_count, columns}, i > 0, p);
    });
    for_squares(of().e, [&](int64_t at, int64_t i, int64_t columns) {
      multiply(dy + at, v_turned + at, {count, key_count, columns}, i > 0, ds);
    });
    for (int64_t r = 0; r < count; ++r) {
      weigh_row(rows, r, first, means[r], p + r * kSide, ds + r * kSide);
    }
    if (args.dv) {
      turn(p, count, key_count, p_turned);
      for_squares(of().e, [&](int64_t at, int64_t, int64_t columns) {
        multiply(p_turned, dy + at, {key_count, columns, count}, true, dv + at);
      });
    }
    if (args.dk) {
      turn(ds, count, key_count, ds_turned);
      for_squares(of().d, [&](int64_t at, int64_t, int64_t columns) {
        multiply(ds_turned, q + at, {key_count, columns, count}, true, dk + at);
      });
    }
    if (!args.dq) return;
    for_squares(of().d, [&](int64_t at, int64_t i, int64_t columns) {
      multiply(ds, k + at, {count, columns, key_count}, false, found);
      for (int64_t r = 0; r < count; ++r) {
        add_in_place(args.dq + rows.place(r) * of().d + i, found + r * kSide, columns);
      }
    });
  }

  void write_keys(int64_t first, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = (keys().k_start + first + i) * of().g + kv_head;
      if (args.dk) gather(scratch.dk, i, of().d, args.dk + place * of().d);
      if (args.dv) gather(scratch.dv, i, of().e, args.dv + place * of().e);
    }
  }
};

void attention_backward_of(const AttentionBackwardArgs& args, int64_t span, int64_t kv_head,
                           const AttentionBackwardScratch& scratch) {
  const AttentionGradient gradient = {args, scratch, span, kv_head};
  const Span& of = args.of.spans[span];
  const int64_t all = of.q_len * (args.of.h / args.of.g);
  const auto for_rows = [&](auto f) {
    for (int64_t r = 0; r < all; r += kSide) {
      const int64_t count = smaller(kSide, all - r);
      f(gradient.rows_from(r, r + count), count, scratch.means + r);
    }
  };
  for_rows([&](const AttentionRows& rows, int64_t count, float* means) {
    gradient.find_means(rows, count, means);
  });
  for (int64_t first = 0; first < of.k_len; first += kSide) {
    const int64_t keys = smaller(kSide, of.k_len - first);
    gradient.read_keys(first, keys);
    for_rows([&](const AttentionRows& rows, int64_t count, const float* means) {
      if (rows.seen(count - 1).to <= first || rows.seen(0).from >= first + kSide) return;
      gradient.take_rows(rows, count, first, keys, means);
    });
    gradient.write_keys(first, keys);
  }
}

}  // namespace
}  // namespace accel_cpu
