// Activations and their derivatives on fp32 vectors, written over those of the vec_*.h included
// before it: the same bits wherever an element stands.
#pragma once

#include "exponential.h"

namespace accel_cpu {
namespace {

inline Vec clamp(Vec a, float low, float high) {  // NaN stays NaN
  return min(broadcast(high), max(broadcast(low), a));
}
// The slope of z / (1 + e^-v), of which v is a function with slope `along`: with s = 1 / (1 + e^-v)
// and its mirror image 1 - s = e^-v s, from which nothing is lost far out, s (1 + z along (1 - s)).
inline Vec slope_of_gated(Vec z, Vec v, Vec along) {
  const Vec one = broadcast(1.0f);
  const Vec e = exp(sub(zero(), clamp(v, -87.0f, 87.0f)));  // finite, and not 0
  const Vec s = div(one, add(one, e));
  return mul(s, madd(mul(z, along), mul(e, s), one));
}

// The normal distribution function within 1.7e-7: beside 1/2, an odd rational function of z.
inline Vec normal_distribution(Vec z) {
  const Vec square = mul(z, z), half = broadcast(0.5f);
  Vec p = broadcast(2.33870222e-8f);
  p = madd(p, square, broadcast(6.35943498e-6f));
  p = madd(p, square, broadcast(1.64286175e-4f));
  p = madd(p, square, broadcast(4.65063070e-3f));
  p = madd(p, square, broadcast(3.33691154e-2f));
  p = madd(p, square, broadcast(3.98942246e-1f));
  Vec q = broadcast(1.21655618e-6f);
  q = madd(q, square, broadcast(7.23870092e-5f));
  q = madd(q, square, broadcast(1.85878183e-3f));
  q = madd(q, square, broadcast(2.83768291e-2f));
  q = madd(q, square, broadcast(2.50310061e-1f));
  q = madd(q, square, broadcast(1.0f));
  const Vec near = add(half, div(mul(z, p), q));
  const Vec far = where_less(z, zero(), zero(), broadcast(1.0f));
  return where_less(broadcast(5.4f * 5.4f), square, far, near);
}

// 2 sqrt(2 / pi) (z + 0.044715 z³): 1 + tanh of half of it is twice its logistic.
inline Vec gelu_tanh_inner(Vec z) {
  const Vec cubic = madd(mul(z, z), broadcast(0.044715f), broadcast(1.0f));
  return mul(mul(broadcast(1.59576912f), z), cubic);
}

// Each with `of`, the function, and `slope`, its derivative.
struct Relu {
  static Vec of(Vec z) { return max(zero(), z); }  // NaN stays NaN
  static Vec slope(Vec z) { return where_less(zero(), z, broadcast(1.0f), zero()); }
};

struct Gelu {
  static Vec of(Vec z) { return mul(z, normal_distribution(z)); }
  static Vec slope(Vec z) {
    const Vec bell = exp(mul(mul(z, z), broadcast(-0.5f)));
    // Where the bell is 0, an infinite z is 0 times infinity.
    const Vec bounded = clamp(z, -15.0f, 15.0f);
    return madd(bounded, mul(bell, broadcast(0.398942280f)), normal_distribution(z));
  }
};

struct GeluTanh {
  static Vec of(Vec z) {
    const Vec e = exp(sub(zero(), gelu_tanh_inner(z)));
    return div(z, add(broadcast(1.0f), e));
  }
  static Vec slope(Vec z) {
    z = clamp(z, -30.0f, 30.0f);  // 0 and 1 beyond, where a cube might overflow
    const Vec along = madd(mul(z, z), broadcast(0.214064449f), broadcast(1.59576912f));
    return slope_of_gated(z, gelu_tanh_inner(z), along);
  }
};

struct Silu {
  static Vec of(Vec z) { return div(z, add(broadcast(1.0f), exp(sub(zero(), z)))); }
  static Vec slope(Vec z) {
    z = clamp(z, -87.0f, 87.0f);  // 0 and 1 beyond
    return slope_of_gated(z, z, broadcast(1.0f));
  }
};

}  // namespace
}  // namespace accel_cpu
