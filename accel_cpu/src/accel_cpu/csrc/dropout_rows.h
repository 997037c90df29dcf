// Rows of dropout_add on one thread, written over the vectors of the vec_*.h included before it.
// Products and sums round separately, as in a composition of torch's operations.
#pragma once

#include "bias_act_rows.h"
#include "random_bits.h"

namespace accel_cpu {
namespace {

static_assert(kColumns <= kMostSurvivors);

// residual + x + b of a whole row.
template <class T>
void add_row(const T* x, const T* b, const T* residual, T* out, int64_t k) {
  for_each_vector(k, [=](int64_t i, auto... n) {
    Vec z = load(x + i, n...);
    if (b) z = add(z, load(b + i, n...));
    if (residual) z = add(load(residual + i, n...), z);
    store(out + i, z, n...);
  });
}

template <class T>
void dropout_add_rows(const DropoutAddArgs& args, int64_t m0, int64_t m1, ColumnSums sums) {
  if (!args.dropout.drops && !sums.b) {
    for (int64_t m = m0; m < m1; ++m) {
      add_row(row_of<T>(args.x, m), static_cast<const T*>(args.b),
              args.residual.data ? row_of<T>(args.residual, m) : nullptr,
              static_cast<T*>(args.out) + m * args.k, args.k);
    }
    return;
  }
  float z[kColumns], kept[kColumns];
  for_columns(m0, m1, args.k, [&](int64_t m, int64_t i, int64_t size) {
    biased<T>(args, m, i, size, z);
    if (args.dropout.drops) {
      survivors(args.dropout, args.rows ? args.rows[m] : m, i, size, kept);
      keep(kept, z, size);
    }
    if (sums.b) add_in_place(sums.b + i, z, size);
    if (args.residual.data) add_in_place(z, row_of<T>(args.residual, m) + i, size);
    if (args.out) round_to(static_cast<T*>(args.out) + m * args.k + i, z, size);
  });
}

}  // namespace
}  // namespace accel_cpu
