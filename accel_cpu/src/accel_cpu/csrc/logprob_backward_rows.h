// Gradients of logits from those of logprob and entropy on one thread, some columns at a time in
// fp32 on the stack, written over the vectors of the vec_*.h included before it.
#pragma once

#include "bias_act_rows.h"
#include "logprob_rows.h"

namespace accel_cpu {
namespace {

// Log-probabilities of a row: those of its logits less `anchor`, plus that of the anchor.
struct Anchor {
  float logit, logprob;
};

// An id's log-probability has digits for others too, unless it is itself far from 0.
constexpr float kNearLogprob = -16;

template <class T>
Anchor anchor_of(const LogprobBackwardArgs& args, const T* z, int64_t m) {
  const LogprobArgs& of = args.of;
  if (args.anchors) return {args.anchors[m], args.logprob[m]};
  if (args.logprob[m] >= kNearLogprob) {
    float chosen;
    store(&chosen, adjusted(of, z + of.ids[m], 1), 1);
    return {chosen, args.logprob[m]};
  }
  const float top = largest(of, z);
  return {top, -::logf(partition(of, z, top).sum)};
}

// With l a log-probability and p = e^l, of a logit (delta - p) of_logprob - p (l + entropy)
// of_entropy, where delta is 1 for the id.
struct ThroughSoftmax {
  float anchor, logprob, entropy, of_logprob, of_entropy;

  Vec operator()(Vec a, float delta) const {
    const Vec l = add(sub(a, broadcast(anchor)), broadcast(logprob));
    // -inf has probability 0, and 0 times -inf is NaN; a NaN, second, stays one.
    const Vec finite = max(broadcast(-1e4f), l);
    const Vec share =
        madd(add(finite, broadcast(entropy)), broadcast(of_entropy), broadcast(of_logprob));
    return sub(broadcast(delta * of_logprob), mul(exp(l), share));
  }
};

// The gradient of a logit from that of what `adjusted` made of it, a.
inline Vec before_adjustment(const LogprobArgs& of, Vec grad, Vec a) {
  if (of.temperature != 1) grad = div(grad, broadcast(of.temperature));
  if (of.softcap != 0) {
    const Vec t = mul(a, broadcast(of.temperature / of.softcap));  // of tanh
    grad = mul(grad, sub(broadcast(1.0f), mul(t, t)));
  }
  return of.scale == 1 ? grad : mul(grad, broadcast(of.scale));
}

template <class T>
void logprob_backward_rows(const LogprobBackwardArgs& args, int64_t m0, int64_t m1,
                           ColumnSums sums) {
  const LogprobArgs& of = args.of;
  float dz[kColumns];
  ThroughSoftmax through{};
  for_columns(m0, m1, of.v, [&](int64_t m, int64_t start, int64_t size) {
    const T* row = row_of<T>(of.z, m);
    if (start == 0) {
      const Anchor anchor = anchor_of(args, row, m);
      through = {anchor.logit, anchor.logprob, args.entropy[m],
                 args.of_logprob ? args.of_logprob[m] : 0,
                 args.of_entropy ? args.of_entropy[m] : 0};
    }
    for_each_vector(size, [&](int64_t i, auto... n) {
      const Vec a = adjusted(of, row + start + i, n...);
      store(dz + i, before_adjustment(of, through(a, 0), a), n...);
    });
    const int64_t id = of.ids[m] - start;
    if (0 <= id && id < size) {
      const Vec a = adjusted(of, row + start + id, 1);
      store(dz + id, before_adjustment(of, through(a, 1), a), 1);
    }
    if (sums.b) add_in_place(sums.b + start, dz, size);
    round_to(args.out_dtype, args.out, m * of.v + start, dz, size);
  });
}

}  // namespace
}  // namespace accel_cpu
