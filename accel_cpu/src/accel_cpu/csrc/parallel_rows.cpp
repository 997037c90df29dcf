// Deals the rows of an op to the OpenMP threads. What is summed over rows is summed within parts of
// them first, which follow from the size alone, then over the parts: no cut changes a result.
#include "parallel.h"

namespace accel_cpu {
namespace {

constexpr int64_t kMostParts = 64;
constexpr int64_t kPartRows = 16;             // at least
constexpr int64_t kPartSums = 1 << 20;        // of all parts, at most
constexpr int64_t kExponentialGrain = 8'192;  // elements, each with its exponential

template <class Args>
int of(const Args& args) {
  return static_cast<int>(args.dtype);
}

template <class Args>
int64_t width(const Args& args) {
  return args.k;
}
int64_t width(const LogprobArgs& args) { return args.v; }

// Calls rows(args, m0, m1, sums) for all rows, with sums over them to `w_sum` and `b_sum` where
// asked for, in the dtype of args.
template <class Args, class Rows>
void for_parts(const Args& args, void* w_sum, void* b_sum, int threads, int64_t grain, Rows rows) {
  const int64_t k = width(args);
  if (!w_sum && !b_sum) {
    return for_rows(args.m, k, threads,
                    [&](int64_t m0, int64_t m1) { rows(args, m0, m1, {}); }, grain);
  }
  const int64_t most = std::clamp<int64_t>(kPartSums / k, 1, kMostParts);
  const int64_t part_rows = std::max(ceil_div(args.m, most), kPartRows);
  const int64_t parts = ceil_div(args.m, part_rows), size = parts * k;
  float* of_w = scratch(2 * size);
  float* of_b = of_w + size;
  if (args.m * k < grain) threads = 1;
  deal(parts, threads, [&](int64_t part) {
    const int64_t m0 = part * part_rows, at = part * k;
    const ColumnSums sums{w_sum ? of_w + at : nullptr, b_sum ? of_b + at : nullptr};
    if (sums.w) std::fill_n(sums.w, k, 0.0f);
    if (sums.b) std::fill_n(sums.b, k, 0.0f);
    rows(args, m0, std::min(args.m, m0 + part_rows), sums);
  });
  const auto sum = kernels().rows.sum_of_rows[of(args)];
  if (w_sum) sum(of_w, parts, k, w_sum);
  if (b_sum) sum(of_b, parts, k, b_sum);
}

}  // namespace

void rms_norm(const NormArgs& args, int threads) {
  const auto rows = kernels().rows.rms_norm[of(args)];
  for_rows(args.m, args.k, threads, [&](int64_t m0, int64_t m1) { rows(args, m0, m1); });
}

void layer_norm(const NormArgs& args, int threads) {
  const auto rows = kernels().rows.layer_norm[of(args)];
  for_rows(args.m, args.k, threads, [&](int64_t m0, int64_t m1) { rows(args, m0, m1); });
}

void rms_norm_backward(const NormBackwardArgs& args, int threads) {
  for_parts(args, args.dw, args.db, threads, kRowGrain, kernels().rows.rms_norm_backward[of(args)]);
}

void layer_norm_backward(const NormBackwardArgs& args, int threads) {
  for_parts(args, args.dw, args.db, threads, kRowGrain,
            kernels().rows.layer_norm_backward[of(args)]);
}

void bias_act(const BiasActArgs& args, int threads) {
  const auto rows = kernels().rows.bias_act[of(args)];
  for_rows(args.m, args.k, threads, [&](int64_t m0, int64_t m1) { rows(args, m0, m1); });
}

void bias_act_backward(const BiasActBackwardArgs& args, int threads) {
  for_parts(args, nullptr, args.db, threads, kRowGrain,
            kernels().rows.bias_act_backward[of(args)]);
}

void gate_backward(const GateBackwardArgs& args, int threads) {
  const auto rows = kernels().rows.gate_backward[of(args)];
  for_rows(args.m, args.k, threads, [&](int64_t m0, int64_t m1) { rows(args, m0, m1); });
}

void dropout_add(const DropoutAddArgs& args, int threads) {
  for_parts(args, nullptr, args.sums, threads, kRowGrain, kernels().rows.dropout_add[of(args)]);
}

void softmax(const SoftmaxArgs& args, int threads) {
  const auto rows = kernels().rows.softmax[of(args)];
  for_rows(args.m, args.k, threads,
           [&](int64_t m0, int64_t m1) { rows(args, m0, m1, scratch(args.k)); },
           kExponentialGrain);
}

void softmax_backward(const SoftmaxBackwardArgs& args, int threads) {
  const auto rows = kernels().rows.softmax_backward[of(args)];
  for_rows(args.m, args.k, threads, [&](int64_t m0, int64_t m1) { rows(args, m0, m1); });
}

void logprob(const LogprobArgs& args, int threads) {
  const auto rows = kernels().rows.logprob[of(args)];
  for_rows(args.m, args.v, threads, [&](int64_t m0, int64_t m1) { rows(args, m0, m1); },
           kExponentialGrain);
}

void logprob_backward(const LogprobBackwardArgs& args, int threads) {
  const auto rows = kernels().rows.logprob_backward[of(args.of)];
  for_parts(args.of, nullptr, args.sums, threads, kExponentialGrain,
            [&](const LogprobArgs&, int64_t m0, int64_t m1, ColumnSums sums) {
              rows(args, m0, m1, sums);
            });
}

}  // namespace accel_cpu
