// Activations and their derivatives on fp32 vectors, written over those of the vec_*.h included
// before it: the same bits wherever an element stands.
#pragma once

#include "exponential.h"

namespace accel_cpu {
namespace {

inline Vec clamp(Vec a, float low, float high) {  // NaN stays NaN
  return min(broadcast(high), max(broadcast(low), a));
}
inline Vec magnitude(Vec a) { return max(a, sub(zero(), a)); }

// The logistic function and its mirror image, 1 / (1 + e^-v) and 1 / (1 + e^v), of which neither is
// taken from 1.
struct Logistic {
  Vec value, mirrored;
};

inline Logistic logistic(Vec v) {
  const Vec one = broadcast(1.0f);
  const Vec e = exp(sub(zero(), magnitude(v)));
  const Vec large = div(one, add(one, e)), small = mul(e, large);
  return {where_less(v, zero(), small, large), where_less(v, zero(), large, small)};
}

// The normal distribution function, and e^(-z²/2) beside it, which its density is a multiple of.
struct Normal {
  Vec distribution, bell;
};

// The tail behind t = |z| is e^(-t²/2) R(t), with R within 3.7e-7 of itself as a polynomial in
// (t - 3) / (t + 3) over t + 3. So far out, too, a probability has its digits.
inline Normal normal(Vec z) {
  const Vec one = broadcast(1.0f);
  const Vec t = min(broadcast(14.5f), magnitude(z));  // from 14.4 on e^(-t²/2) is 0
  const Vec bell = exp(mul(mul(t, t), broadcast(-0.5f)));
  const Vec u = div(one, add(t, broadcast(3.0f)));
  const Vec s = madd(u, broadcast(-6.0f), one);
  Vec p = broadcast(-2.62991991e-4f);
  p = madd(p, s, broadcast(-8.97756719e-4f));
  p = madd(p, s, broadcast(1.07473473e-3f));
  p = madd(p, s, broadcast(6.92000845e-3f));
  p = madd(p, s, broadcast(-1.04800947e-2f));
  p = madd(p, s, broadcast(-4.72552851e-2f));
  p = madd(p, s, broadcast(2.30019405e-1f));
  p = madd(p, s, broadcast(-5.09332299e-1f));
  p = madd(p, s, broadcast(7.29083657e-1f));
  const Vec tail = mul(bell, mul(p, u));
  return {where_less(z, zero(), tail, sub(one, tail)), bell};
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
  static Vec of(Vec z) { return mul(z, normal(z).distribution); }
  static Vec slope(Vec z) {
    const Normal n = normal(z);
    const Vec density = mul(n.bell, broadcast(0.398942280f));
    return madd(z, density, n.distribution);
  }
};

struct GeluTanh {
  static Vec of(Vec z) {
    const Vec e = exp(sub(zero(), gelu_tanh_inner(z)));
    return div(z, add(broadcast(1.0f), e));
  }
  static Vec slope(Vec z) {
    z = clamp(z, -30.0f, 30.0f);  // 0 and 1 beyond, where the cube would overflow
    const Logistic s = logistic(gelu_tanh_inner(z));
    const Vec inner_slope = madd(mul(z, z), broadcast(0.214064449f), broadcast(1.59576912f));
    return mul(s.value, madd(mul(z, s.mirrored), inner_slope, broadcast(1.0f)));
  }
};

struct Silu {
  static Vec of(Vec z) { return div(z, add(broadcast(1.0f), exp(sub(zero(), z)))); }
  static Vec slope(Vec z) {
    const Logistic s = logistic(z);
    return mul(s.value, madd(z, s.mirrored, broadcast(1.0f)));
  }
};

}  // namespace
}  // namespace accel_cpu
