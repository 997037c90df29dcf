// Attention of few rows beside many keys, in steps that threads share, written over the vectors of
// the vec_*.h included before it. What is computed of a row is what attention_few.h computes of it:
// blocks of keys wait for each other only with what their weights are relative to, and with the sum
// of what they have found.
#pragma once

#include "attention_few.h"

namespace accel_cpu {
namespace {

template <class T>
struct PartsOfRows : FewRows<T> {
  const AttentionParts& parts;
  KeyRange any = {0, 0};
  int64_t origin = 0;  // the first key of the first block

  PartsOfRows(const AttentionArgs& args, const AttentionBlock& block,
              const AttentionScratch& scratch, const AttentionParts& parts)
      : FewRows<T>{args, block, scratch}, parts(parts) {
    any = this->begin_rows();
    origin = any.from / kAttentionKeys * kAttentionKeys;
  }

  int64_t places() const { return this->heads * this->each; }
  int64_t first_of(int64_t b) const { return origin + b * kAttentionKeys; }
  int64_t blocks() const { return (any.to - origin + kAttentionKeys - 1) / kAttentionKeys; }
  int64_t upto(int64_t b) const { return smaller(b, blocks()); }
  float& factor_of(int64_t b, int64_t place) const { return parts.factors[b * places() + place]; }
  // What has become of a row: its largest score, and the lanes of the sum of its weights.
  float* found_of(int64_t place) const { return parts.rows + place * (kMostLanes + 1); }

  void enter(int64_t b) {
    this->scratch.weights = parts.weights + b * places() * kAttentionKeys;
    this->scratch.sums = parts.sums + b * places() * this->args.e;
  }

  template <class F>
  void for_rows_of(int64_t i0, int64_t i1, F f) const {
    this->for_rows([&](int64_t i, int64_t r, int64_t place) {
      if (i0 <= i && i < i1) f(i, r, place);
    });
  }

  void score_blocks(int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < upto(b1); ++b) {
      enter(b);
      this->score(first_of(b), in_block(any, first_of(b)).to);
    }
  }

  void weigh_heads(int64_t i0, int64_t i1) {
    for (int64_t b = 0; b < blocks(); ++b) {
      enter(b);
      const int64_t first = first_of(b);
      for_rows_of(i0, i1, [&](int64_t i, int64_t r, int64_t place) {
        const KeyRange seen = in_block(this->row[place].seen, first);
        if (seen.empty()) return;
        factor_of(b, place) =
            accel_cpu::weigh(this->rows(i), r, first, seen, this->weights(place), this->row[place]);
      });
    }
    for_rows_of(i0, i1, [&](int64_t, int64_t, int64_t place) {
      *found_of(place) = this->row[place].top;
      store(found_of(place) + 1, this->row[place].weights);
    });
  }

  void sum_blocks(int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < upto(b1); ++b) {
      enter(b);
      this->for_rows([&](int64_t, int64_t, int64_t place) {
        this->seen[place] = in_block(this->row[place].seen, first_of(b));
      });
      this->sum_values(first_of(b), in_block(any, first_of(b)).to);
    }
  }

  void finish_heads(int64_t i0, int64_t i1) {
    for_rows_of(i0, i1, [&](int64_t i, int64_t r, int64_t place) {
      AttentionRow& row = this->row[place];
      __builtin_memset(this->out(place), 0, this->args.e * sizeof(float));
      for (int64_t b = 0; b < blocks(); ++b) {
        enter(b);
        this->seen[place] = in_block(row.seen, first_of(b));
        this->factor[place] = factor_of(b, place);
        this->gather(place);
      }
      row.top = *found_of(place);
      row.weights = load(found_of(place) + 1);
      finish<T>(this->rows(i), r, row, this->out(place));
    });
  }
};

template <class T>
void attention_step(const AttentionArgs& args, const AttentionBlock& block,
                    const AttentionScratch& scratch, const AttentionParts& parts,
                    AttentionStep step, int64_t from, int64_t to) {
  PartsOfRows<T> rows(args, block, scratch, parts);
  switch (step) {
    case AttentionStep::score: return rows.score_blocks(from, to);
    case AttentionStep::weigh: return rows.weigh_heads(from, to);
    case AttentionStep::sum: return rows.sum_blocks(from, to);
    case AttentionStep::finish: return rows.finish_heads(from, to);
  }
}

}  // namespace
}  // namespace accel_cpu
