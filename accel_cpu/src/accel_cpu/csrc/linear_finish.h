// From the fp32 sums of a linear to its results: bias, activation, gate, adapter and rounding,
// written over the vectors of the vec_*.h included before it.
#pragma once

#include "elementwise.h"
#include "linear_tile.h"

namespace accel_cpu {
namespace {

inline void add_scaled_in_place(float* a, const float* b, float scale, int64_t size) {
  for_each_vector(size, [=](int64_t i, auto... n) {
    store(a + i, madd(broadcast(scale), load(b + i, n...), load(a + i, n...)), n...);
  });
}

// Of row m, columns from n on. `other` holds the sums of x w_up^T or of u lora_b^T where there is
// one.
void finish_row(const LinearArgs& args, int64_t m, int64_t n, int64_t columns, float* sums,
                float* other) {
  if (args.bias) add_in_place(sums, args.dtype, args.bias, n, columns);
  if (args.before_act) round_to(args.before_act + m * args.n + n, sums, columns);
  activate_in_place(args.act, sums, columns);
  if (args.gated) {
    if (args.bias_up) add_in_place(other, args.dtype, args.bias_up, n, columns);
    if (args.up) round_to(args.up + m * args.n + n, other, columns);
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
void finish_tile(const LinearArgs& args, const Block& tile, float* sums, int64_t stride,
                 float* other, int64_t other_stride) {
  const bool whole = (tile.n1 - tile.n0) % kLanes == 0;
  if (whole && args.act == Activation::none && !other) {
    return of_dtype(args.dtype, [&](auto in) {
      of_dtype(args.out_dtype, [&](auto out) {
        finish_plain<decltype(in), decltype(out)>(args, tile, sums, stride);
      });
    });
  }
  for (int64_t m = tile.m0; m < tile.m1; ++m) {
    finish_row(args, m, tile.n0, tile.n1 - tile.n0, sums, other);
    sums += stride;
    if (other) other += other_stride;
  }
}

// Where the sums of a block come from and go to: the results, or, kept, beside those of another
// product that are finished with them.
struct Results {
  const LinearArgs& args;
  const Block& block;
  const LinearScratch& scratch;
  bool kept = false, with_kept = false;

  TileSums place_kept(const Block& tile) const {
    const int64_t stride = scratch.sums_stride;
    return {scratch.other + (tile.m0 - block.m0) * stride + (tile.n0 - block.n0), stride};
  }
  static bool whole(const Block& tile, int R, int64_t C) {
    return tile.m1 - tile.m0 == R && tile.n1 - tile.n0 == C;
  }
  // The partial sum, where it lies or `here`.
  TileStart start(const Block& tile, int R, int64_t C, TileSums here) const {
    if (kept || !args.partial.data) return {};
    const int64_t stride = args.partial.stride;
    if (args.partial_dtype == DType::f32 && whole(tile, R, C)) {
      return {static_cast<const float*>(args.partial.data) + tile.m0 * stride + tile.n0, stride};
    }
    for (int r = 0; r < R; ++r) {
      float* row = here.data + r * here.stride;
      for_each_vector(C, [&](int64_t i, auto...) { store(row + i, zero()); });
      const int64_t m = tile.m0 + r;
      if (m >= tile.m1) continue;
      add_in_place(row, args.partial_dtype, args.partial.data, m * stride + tile.n0,
                   tile.n1 - tile.n0);
    }
    return here;
  }
  // Whole tiles of fp32 that nothing more happens to go straight to their place.
  TileSums place(const Block& tile, int R, int64_t C) const {
    if (kept) return place_kept(tile);
    const bool done = args.out_dtype == DType::f32 && args.act == Activation::none && !args.bias &&
                      !with_kept;
    if (!whole(tile, R, C) || !done) return {};
    return {static_cast<float*>(args.out) + tile.m0 * args.out_stride + tile.n0, args.out_stride};
  }
  void finish(const Block& tile, float* sums, int64_t stride) const {
    const TileSums other = with_kept ? place_kept(tile) : TileSums{};
    finish_tile(args, tile, sums, stride, other.data, other.stride);
  }
};

}  // namespace
}  // namespace accel_cpu
