// exp and tanh on fp32 vectors, written over those of the vec_*.h included before it: the same
// steps on every instruction set, and the same bits wherever an element stands.
#pragma once

namespace accel_cpu {
namespace {

// Within 1.01 ulp of e^a. NaN gives NaN, more than 88.7228 infinity, and results below the normal
// range are rounded once to a subnormal number, from -103.973 down to zero.
inline Vec exp(Vec a) {
  // Beyond these bounds the result is infinite or zero anyway. A NaN, second, passes through.
  a = min(broadcast(89.0f), max(broadcast(-105.0f), a));
  // a = n ln 2 + r. The first product is exact, as ln 2's upper part has 9 bits and n has 8.
  const Vec n = round_to_integer(mul(a, broadcast(1.44269504f)));
  Vec r = madd(n, broadcast(-0.693359375f), a);
  r = madd(n, broadcast(2.12194440e-4f), r);
  // (e^r - 1 - r) / r^2, a minimax fit on |r| <= ln 2 / 2 that puts e^r wrong by 0.05 ulp at most.
  Vec p = broadcast(0.0013820662f);
  p = madd(p, r, broadcast(0.008368675f));
  p = madd(p, r, broadcast(0.041668266f));
  p = madd(p, r, broadcast(0.16666521f));
  p = madd(p, r, broadcast(0.49999994f));
  p = madd(mul(r, r), p, r);
  return scale_by_exp2(add(p, broadcast(1.0f)), n);
}

// Within 1.31 ulp of tanh(a). Near zero, where 1 - 2 / (e^2a + 1) cancels, an odd polynomial
// (Cephes).
inline Vec tanh(Vec a) {
  const Vec square = mul(a, a);
  Vec p = broadcast(-5.70498872745e-3f);
  p = madd(p, square, broadcast(2.06390887954e-2f));
  p = madd(p, square, broadcast(-5.37397155531e-2f));
  p = madd(p, square, broadcast(1.33314422036e-1f));
  p = madd(p, square, broadcast(-3.33332819422e-1f));
  const Vec near = madd(mul(p, square), a, a);
  const Vec one = broadcast(1.0f);
  const Vec sign = where_less(a, zero(), broadcast(-1.0f), one);
  const Vec e = exp(mul(mul(broadcast(2.0f), sign), a));  // of 2 |a|
  const Vec far = mul(sign, sub(one, div(broadcast(2.0f), add(e, one))));
  return where_less(square, broadcast(0.390625f), near, far);
}

}  // namespace
}  // namespace accel_cpu
