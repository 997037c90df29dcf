// Gradients of norms on one thread, written over the vectors of the vec_*.h included before it.
// With y the normalised row, s its scale and g = grad w, dx = s (g - mean(g) - y mean(g y)), of
// rms_norm without the mean of g; dw sums grad y over the rows, db sums grad.
#pragma once

#include "rms_norm_rows.h"

namespace accel_cpu {
namespace {

// What of a row its gradient is made of.
template <class T>
struct NormRow {
  const T *x, *grad, *w;
  Vec mean, scale;       // y = (x - mean) scale
  Vec grad_mean, along;  // dx = (g - grad_mean - y along) scale

  template <class... N>
  Vec g(int64_t i, N... n) const {
    const Vec a = load(grad + i, n...);
    return w ? mul(a, load(w + i, n...)) : a;
  }
};

template <class T>
NormRow<T> rms_norm_row(const NormBackwardArgs& args, NormRow<T> row) {
  const float size = static_cast<float>(args.k);
  float sums[4];  // of x² and g x
  row_sums<2>(args.k, sums, [=](Vec* acc, int64_t i, auto... n) {
    const Vec a = load(row.x + i, n...);
    acc[0] = madd(a, a, acc[0]);
    acc[1] = madd(row.g(i, n...), a, acc[1]);
  });
  const float scale = 1.0f / ::sqrtf(sums[0] / size + args.eps);
  row.mean = row.grad_mean = zero();
  row.scale = broadcast(scale);
  row.along = broadcast(sums[1] / size * scale);
  return row;
}

template <class T>
NormRow<T> layer_norm_row(const NormBackwardArgs& args, NormRow<T> row) {
  const float size = static_cast<float>(args.k);
  const float sum = row_sum(
      args.k, [=](Vec acc, int64_t i, auto... n) { return add(acc, load(row.x + i, n...)); });
  row.mean = broadcast(sum / size);
  float sums[4];  // of d², g and g d, d being x - mean
  row_sums<3>(args.k, sums, [=](Vec* acc, int64_t i, auto... n) {
    const Vec d = first_of(sub(load(row.x + i, n...), row.mean), zero(), n...);
    const Vec g = row.g(i, n...);
    acc[0] = madd(d, d, acc[0]);
    acc[1] = add(acc[1], g);
    acc[2] = madd(g, d, acc[2]);
  });
  const float scale = 1.0f / ::sqrtf(sums[0] / size + args.eps);
  row.scale = broadcast(scale);
  row.grad_mean = broadcast(sums[1] / size);
  row.along = broadcast(sums[2] / size * scale);
  return row;
}

template <class T, NormRow<T> (*Row)(const NormBackwardArgs&, NormRow<T>)>
void norm_backward_rows(const NormBackwardArgs& args, int64_t m0, int64_t m1, ColumnSums sums) {
  for (int64_t m = m0; m < m1; ++m) {
    NormRow<T> row{};
    T* dx = args.dx ? static_cast<T*>(args.dx) + m * args.k : nullptr;
    const T* total_grad = args.total_grad.data ? row_of<T>(args.total_grad, m) : nullptr;
    row.x = normed_row<T>(args, m, args.dx);  // an element of dx is written after x's was read
    row.grad = row_of<T>(args.grad, m);
    row.w = static_cast<const T*>(args.w);
    row = Row(args, row);
    if (sums.b) add_in_place(sums.b, row.grad, args.k);
    for_each_vector(args.k, [=](int64_t i, auto... n) {
      const Vec y = mul(sub(load(row.x + i, n...), row.mean), row.scale);
      if (sums.w) {
        store(sums.w + i, madd(load(row.grad + i, n...), y, load(sums.w + i, n...)), n...);
      }
      if (!dx) return;
      const Vec across = sub(sub(row.g(i, n...), row.grad_mean), mul(y, row.along));
      const Vec a = mul(across, row.scale);
      store(dx + i, total_grad ? add(a, load(total_grad + i, n...)) : a, n...);
    });
  }
}

template <class T>
void rms_norm_backward_rows(const NormBackwardArgs& args, int64_t m0, int64_t m1, ColumnSums sums) {
  norm_backward_rows<T, rms_norm_row<T>>(args, m0, m1, sums);
}

template <class T>
void layer_norm_backward_rows(const NormBackwardArgs& args, int64_t m0, int64_t m1,
                              ColumnSums sums) {
  norm_backward_rows<T, layer_norm_row<T>>(args, m0, m1, sums);
}

template <class T>
void sum_of_rows(const float* parts, int64_t count, int64_t k, void* out) {
  T* sums = static_cast<T*>(out);
  for_each_vector(k, [=](int64_t i, auto... n) {
    Vec sum = zero();
    for (int64_t part = 0; part < count; ++part) sum = add(sum, load(parts + part * k + i, n...));
    store(sums + i, sum, n...);
  });
}

}  // namespace
}  // namespace accel_cpu
