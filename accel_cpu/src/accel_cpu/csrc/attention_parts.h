// Attention of few rows beside many keys, in steps that threads share, written over the vectors of
// the vec_*.h included before it. What is computed of a row is what attention_few.h computes of it:
// blocks of keys wait for each other only with what their weights are relative to, and with the sum
// of what they have found. Many keys go in rounds, whose blocks have room together.
#pragma once

#include "attention_few.h"

namespace accel_cpu {
namespace {

template <class T>
struct PartsOfRows : FewRows<T> {
  const AttentionParts& parts;
  KeyRange any = {0, 0};
  int64_t origin = 0;  // the first key of the first block of the round

  PartsOfRows(const AttentionArgs& args, const AttentionBlock& block,
              const AttentionScratch& scratch, const AttentionParts& parts)
      : FewRows<T>{args, block, scratch}, parts(parts) {
    any = this->begin_rows();
    origin = (any.from / kAttentionKeys + parts.first) * kAttentionKeys;
    this->scratch.out = parts.out;
  }

  int64_t places() const { return this->heads * this->each; }
  int64_t first_of(int64_t b) const { return origin + b * kAttentionKeys; }
  int64_t keys_of(int64_t b) const { return in_block(any, first_of(b)).to; }
  float& factor_of(int64_t b, int64_t place) const { return parts.factors[b * places() + place]; }
  // Of a row its largest score, and the lanes of the sum of its weights.
  float* top_of(int64_t place) const { return parts.tops + place * (kMostLanes + 1); }

  void enter(int64_t b) {
    this->scratch.weights = parts.weights + b * places() * kAttentionKeys;
    this->scratch.sums = parts.sums + b * places() * this->args.e;
  }

  void restore(int64_t place) {
    this->row[place].top = *top_of(place);
    this->row[place].weights = load(top_of(place) + 1);
  }

  // f(i, r, place) for the heads [i0, i1) of the block.
  template <class F>
  void for_rows_of(int64_t i0, int64_t i1, F f) const {
    this->for_rows([&](int64_t i, int64_t r, int64_t place) {
      if (i0 <= i && i < i1) f(i, r, place);
    });
  }

  void score(int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      enter(b);
      FewRows<T>::score(first_of(b), keys_of(b));
    }
  }

  void weigh(int64_t i0, int64_t i1) {
    for_rows_of(i0, i1, [&](int64_t i, int64_t r, int64_t place) {
      AttentionRow& row = this->row[place];
      if (parts.first) restore(place);
      for (int64_t b = 0; b < parts.count; ++b) {
        const KeyRange seen = in_block(row.seen, first_of(b));
        if (seen.empty()) continue;
        enter(b);
        factor_of(b, place) =
            accel_cpu::weigh(this->rows(i), r, first_of(b), seen, this->weights(place), row);
      }
      *top_of(place) = row.top;
      store(top_of(place) + 1, row.weights);
    });
  }

  void sum(int64_t b0, int64_t b1) {
    for (int64_t b = b0; b < b1; ++b) {
      enter(b);
      this->for_rows([&](int64_t, int64_t, int64_t place) {
        this->seen[place] = in_block(this->row[place].seen, first_of(b));
      });
      this->sum_values(first_of(b), keys_of(b));
    }
  }

  void gather(int64_t i0, int64_t i1) {
    const bool last = first_of(parts.count) >= any.to;
    for_rows_of(i0, i1, [&](int64_t i, int64_t r, int64_t place) {
      float* out = this->out(place);
      if (!parts.first) __builtin_memset(out, 0, this->args.e * sizeof(float));
      for (int64_t b = 0; b < parts.count; ++b) {
        enter(b);
        this->seen[place] = in_block(this->row[place].seen, first_of(b));
        this->factor[place] = factor_of(b, place);
        FewRows<T>::gather(place);
      }
      restore(place);
      if (last) finish<T>(this->rows(i), r, this->row[place], out);
    });
  }
};

template <class T>
void attention_step(const AttentionArgs& args, const AttentionBlock& block,
                    const AttentionScratch& scratch, const AttentionParts& parts,
                    AttentionStep step, int64_t from, int64_t to) {
  PartsOfRows<T> rows(args, block, scratch, parts);
  switch (step) {
    case AttentionStep::score: return rows.score(from, to);
    case AttentionStep::weigh: return rows.weigh(from, to);
    case AttentionStep::sum: return rows.sum(from, to);
    case AttentionStep::gather: return rows.gather(from, to);
  }
}

}  // namespace
}  // namespace accel_cpu
