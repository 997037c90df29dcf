// From the fp32 sums of a linear to its results: bias, activation, gate, adapter and rounding,
// written over the vectors of the vec_*.h included before it.
#pragma once

#include "elementwise.h"
#include "kernels.h"

namespace accel_cpu {
namespace {

inline void add_scaled_in_place(float* a, const float* b, float scale, int64_t size) {
  for_each_vector(size, [=](int64_t i, auto... n) {
    store(a + i, madd(broadcast(scale), load(b + i, n...), load(a + i, n...)), n...);
  });
}

// Of row m, columns from n on. `other` holds the sums of x w_up^T or of u lora_b^T where there is
// one.
template <class T>
void finish_row(const LinearArgs& args, int64_t m, int64_t n, int64_t columns, float* sums,
                float* other) {
  if (args.bias) add_in_place(sums, static_cast<const T*>(args.bias) + n, columns);
  activate_in_place(args.act, sums, columns);
  if (args.gated) {
    if (args.bias_up) add_in_place(other, static_cast<const T*>(args.bias_up) + n, columns);
    multiply_in_place(sums, other, columns);
  }
  if (args.rank) add_scaled_in_place(sums, other, args.scale, columns);
  round_to(args.out_dtype, args.out, m * args.out_stride + n, sums, columns);
}

// Whole vectors that take no more than a bias. Of a product with K=512 the way through finish_row
// takes a tenth (fp32, Zen 3).
template <class T, class Out>
void finish_plain(const LinearArgs& args, const Block& tile, const float* sums, int64_t stride) {
  const auto* bias = static_cast<const T*>(args.bias);
  for (int64_t m = tile.m0; m < tile.m1; ++m, sums += stride) {
    for (int64_t n = tile.n0; n < tile.n1; n += kLanes) {
      Vec sum = load(sums + (n - tile.n0));
      if (bias) sum = add(sum, load(bias + n));
      store(static_cast<Out*>(args.out) + m * args.out_stride + n, sum);
    }
  }
}

// `sums` and `other` are [rows, columns] of their stride.
template <class T>
void finish_tile(const LinearArgs& args, const Block& tile, float* sums, int64_t stride,
                 float* other, int64_t other_stride) {
  const bool whole = (tile.n1 - tile.n0) % kLanes == 0;
  if (whole && args.act == Activation::none && !other) {
    switch (args.out_dtype) {
      case DType::f32: return finish_plain<T, float>(args, tile, sums, stride);
      case DType::bf16: return finish_plain<T, bf16>(args, tile, sums, stride);
      case DType::f16: return finish_plain<T, f16>(args, tile, sums, stride);
    }
  }
  for (int64_t m = tile.m0; m < tile.m1; ++m) {
    finish_row<T>(args, m, tile.n0, tile.n1 - tile.n0, sums, other);
    sums += stride;
    if (other) other += other_stride;
  }
}

}  // namespace
}  // namespace accel_cpu
