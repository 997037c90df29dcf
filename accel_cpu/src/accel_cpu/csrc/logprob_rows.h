// Rows of logprob on one thread, written over the vectors of the vec_*.h included before it. The
// order of a row's sums depends on v alone, and an element has the same bits wherever it stands.
#pragma once

#include <float.h>
#include <math.h>

#include "exponential.h"
#include "row_kernels.h"
#include "row_sum.h"

namespace accel_cpu {
namespace {

// Elements summed before they are added to the others: a vocabulary in one chain would lose digits.
constexpr int64_t kRun = 1024;

// The logits from z + i on, scaled, capped and tempered. A step that changes nothing is left out.
// Lanes past the end of a row count as probability 0.
template <class T, class... N>
Vec adjusted(const LogprobArgs& args, const T* z, N... n) {
  Vec a = load(z, n...);
  if (args.scale != 1) a = mul(a, broadcast(args.scale));
  if (args.softcap != 0) {
    const Vec cap = broadcast(args.softcap);
    a = mul(cap, tanh(div(a, cap)));
  }
  if (args.temperature != 1) a = div(a, broadcast(args.temperature));
  return first_of(a, broadcast(-INFINITY), n...);
}

template <class T>
float largest(const LogprobArgs& args, const T* z) {
  Vec top = broadcast(-INFINITY);
  for_each_vector(args.v,
                  [&](int64_t i, auto... n) { top = max(top, adjusted(args, z + i, n...)); });
  return highest_lane(top);
}

// With d = z - max: sum = Σ e^d and moment = Σ e^d d.
struct Partition {
  float sum, moment;
};

template <class T>
Partition partition(const LogprobArgs& args, const T* z, float max_logit) {
  Vec totals[4] = {zero(), zero(), zero(), zero()};  // the last two because reduce4 takes four
  for (int64_t start = 0; start < args.v; start += kRun) {
    Vec sum = zero(), moment = zero();
    for_each_vector(args.v - start < kRun ? args.v - start : kRun, [&](int64_t i, auto... n) {
      Vec d = sub(adjusted(args, z + start + i, n...), broadcast(max_logit));
      // -inf has probability 0, and 0 times -inf is NaN; a NaN, second, stays one.
      d = max(broadcast(-FLT_MAX), d);
      const Vec p = exp(d);
      sum = add(sum, p);
      moment = madd(p, d, moment);
    });
    totals[0] = add(totals[0], sum);
    totals[1] = add(totals[1], moment);
  }
  float sums[4];
  reduce4(totals, sums);
  return {sums[0], sums[1]};
}

template <class T>
void logprob_rows(const LogprobArgs& args, int64_t m0, int64_t m1) {
  for (int64_t m = m0; m < m1; ++m) {
    const T* z = row_of<T>(args.z, m);
    const float max_logit = largest(args, z);
    const Partition p = partition(args, z, max_logit);
    float chosen;
    store(&chosen, adjusted(args, z + args.ids[m], 1), 1);
    const float log_sum = ::logf(p.sum);
    args.logprob[m] = (chosen - max_logit) - log_sum;
    args.entropy[m] = log_sum - p.moment / p.sum;
  }
}

}  // namespace
}  // namespace accel_cpu
