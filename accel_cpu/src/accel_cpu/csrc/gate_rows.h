// The gradients of a gate and of what it is multiplied by, on one thread, some columns at a time in
// fp32 on the stack, written over the vectors of the vec_*.h included before it.
#pragma once

#include "bias_act_rows.h"

namespace accel_cpu {
namespace {

template <class F>
void gate_backward_of(F, const float* gate, const float* up, const float* grad, float* d_gate,
                      float* d_up, int64_t size) {
  for_each_vector(size, [=](int64_t i, auto... n) {
    const Vec z = load(gate + i, n...), g = load(grad + i, n...);
    store(d_gate + i, mul(mul(load(up + i, n...), g), F::slope(z)), n...);
    store(d_up + i, mul(F::of(z), g), n...);
  });
}

template <class T>
void gate_backward_rows(const GateBackwardArgs& args, int64_t m0, int64_t m1) {
  float parts[3][kColumns];
  for_columns(m0, m1, args.k, [&](int64_t m, int64_t i, int64_t size) {
    const int64_t at = m * args.k + i;
    const float* grad = widened(row_of<T>(args.grad, m) + i, parts[0], size);
    with_activation(args.act, [&](auto act) {
      gate_backward_of(act, args.gate + at, args.up + at, grad, parts[1], parts[2], size);
    });
    round_to(args.out_dtype, args.d_gate, at, parts[1], size);
    round_to(args.out_dtype, args.d_up, at, parts[2], size);
  });
}

}  // namespace
}  // namespace accel_cpu
