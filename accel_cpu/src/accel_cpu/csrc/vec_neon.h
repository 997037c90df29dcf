// fp32 vectors for AArch64, every one of which has NEON (AdvSIMD).
#pragma once

#include <arm_neon.h>

#include "element.h"

namespace accel_cpu {
namespace {

using Vec = float32x4_t;
constexpr int kLanes = 4;
// 24 accumulators, 4 vectors of w and a few elements of x fit in the 32 registers. An element costs
// a load of its own, so tiles are wide rather than tall: 10 loads a step, of 12 by 2 vectors 14.
constexpr int kAccumulators = 24;
constexpr int kTileRows = 6;  // of the tallest tile
constexpr int kDotRows = 6;  // against four of w, lanes along k
constexpr bool kAsksAhead = false;  // not measured on any processor

inline Vec zero() { return vdupq_n_f32(0); }
inline Vec broadcast(float a) { return vdupq_n_f32(a); }
inline Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
inline Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
inline Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
inline Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
inline Vec madd(Vec a, Vec b, Vec acc) { return vfmaq_f32(acc, a, b); }
// a < b ? yes : no
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return vbslq_f32(vcltq_f32(a, b), yes, no);
}
// b where either is NaN, which FMAX and FMAXNM have otherwise.
inline Vec max(Vec a, Vec b) { return where_less(b, a, a, b); }
inline Vec min(Vec a, Vec b) { return where_less(a, b, a, b); }
inline Vec lane_index() { return Vec{0, 1, 2, 3}; }

// To nearest, ties to even; |a| < 2^22.
inline Vec round_to_integer(Vec a) { return vrndnq_f32(a); }

inline Vec exp2_of(int32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}
// a 2^n, rounded once, for an integer n in [-252, 254] and a neither tiny nor huge.
inline Vec scale_by_exp2(Vec a, Vec n) {
  const int32x4_t whole = vcvtq_s32_f32(n);
  const int32x4_t half = vshrq_n_s32(whole, 1);
  return mul(mul(a, exp2_of(half)), exp2_of(vsubq_s32(whole, half)));
}

// The whole numbers of kBits bits at p, of which each lane gets one. Of 4 bits two lie in a byte,
// the first in its low half, each plus 8.
template <int kBits>
inline Vec load_numbers(const uint8_t* p) {
  if constexpr (kBits == 8) {
    uint32_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(bytes)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  } else {
    uint16_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    const int32x4_t place = {0, -4, -8, -12};
    const uint32x4_t bits = vandq_u32(vshlq_u32(vdupq_n_u32(bytes), place), vdupq_n_u32(15));
    return sub(vcvtq_f32_u32(bits), broadcast(8));
  }
}

// ZIP1 makes it one instruction; extended and shifted it would be two (GCC 12).
inline Vec widen_bf16(uint16x4_t a) {
  const uint16x8_t whole = vcombine_u16(a, vdup_n_u16(0));
  return vreinterpretq_f32_u16(vzip1q_u16(vdupq_n_u16(0), whole));
}

// Round to nearest even in integers: BFCVTN is not of every AArch64.
inline uint16x4_t narrow_bf16(Vec a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), rounded, vdupq_n_u32(0x7fc00000)), 16);
}

inline Vec widen_f16(uint16x4_t a) { return vcvt_f32_f16(vreinterpret_f16_u16(a)); }
inline uint16x4_t narrow_f16(Vec a) { return vreinterpret_u16_f16(vcvt_f16_f32(a)); }

template <class T>
uint16_t* bits_at(T* p) {
  return reinterpret_cast<uint16_t*>(p);
}
template <class T>
const uint16_t* bits_at(const T* p) {
  return reinterpret_cast<const uint16_t*>(p);
}

// NEON has no masked moves: a tail, of three elements at most, goes one by one.
inline uint16x4_t load_bits(const uint16_t* p, int n) {
  uint16x4_t a = vdup_n_u16(0);
  if (n > 0) a = vld1_lane_u16(p, a, 0);
  if (n > 1) a = vld1_lane_u16(p + 1, a, 1);
  if (n > 2) a = vld1_lane_u16(p + 2, a, 2);
  return a;
}
inline void store_bits(uint16_t* p, uint16x4_t a, int n) {
  if (n > 0) vst1_lane_u16(p, a, 0);
  if (n > 1) vst1_lane_u16(p + 1, a, 1);
  if (n > 2) vst1_lane_u16(p + 2, a, 2);
}

inline Vec load(const float* p) { return vld1q_f32(p); }
inline Vec load(const bf16* p) { return widen_bf16(vld1_u16(bits_at(p))); }
inline Vec load(const f16* p) { return widen_f16(vld1_u16(bits_at(p))); }

// The first n < kLanes elements, the other lanes zero. Nothing behind them is touched.
inline Vec load(const float* p, int n) {
  Vec a = zero();
  if (n > 0) a = vld1q_lane_f32(p, a, 0);
  if (n > 1) a = vld1q_lane_f32(p + 1, a, 1);
  if (n > 2) a = vld1q_lane_f32(p + 2, a, 2);
  return a;
}
inline Vec load(const bf16* p, int n) { return widen_bf16(load_bits(bits_at(p), n)); }
inline Vec load(const f16* p, int n) { return widen_f16(load_bits(bits_at(p), n)); }

inline void store(float* p, Vec a) { vst1q_f32(p, a); }
inline void store(bf16* p, Vec a) { vst1_u16(bits_at(p), narrow_bf16(a)); }
inline void store(f16* p, Vec a) { vst1_u16(bits_at(p), narrow_f16(a)); }

inline void store(float* p, Vec a, int n) {
  if (n > 0) vst1q_lane_f32(p, a, 0);
  if (n > 1) vst1q_lane_f32(p + 1, a, 1);
  if (n > 2) vst1q_lane_f32(p + 2, a, 2);
}
inline void store(bf16* p, Vec a, int n) { store_bits(bits_at(p), narrow_bf16(a), n); }
inline void store(f16* p, Vec a, int n) { store_bits(bits_at(p), narrow_f16(a), n); }

// The first halves of a and b, or their second ones.
inline Vec low_halves(Vec a, Vec b) {
  return vreinterpretq_f32_f64(vzip1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}
inline Vec high_halves(Vec a, Vec b) {
  return vreinterpretq_f32_f64(vzip2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}

// v[i][j] becomes v[j][i].
inline void transpose(Vec (&v)[kLanes]) {
  const Vec even = vtrn1q_f32(v[0], v[1]), odd = vtrn2q_f32(v[0], v[1]);
  const Vec even_below = vtrn1q_f32(v[2], v[3]), odd_below = vtrn2q_f32(v[2], v[3]);
  v[0] = low_halves(even, even_below);
  v[1] = low_halves(odd, odd_below);
  v[2] = high_halves(even, even_below);
  v[3] = high_halves(odd, odd_below);
}

// out[j] = the sum of v[j], halving: lanes i and i + 2, then i + 1.
inline Vec sums4(const Vec* v) {
  const Vec of01 = add(low_halves(v[0], v[1]), high_halves(v[0], v[1]));
  const Vec of23 = add(low_halves(v[2], v[3]), high_halves(v[2], v[3]));
  return vpaddq_f32(of01, of23);
}
inline void reduce4(const Vec* v, float* out) { store(out, sums4(v)); }
// out[j] = before[j] + the sum of v[j]
inline void reduce4(const Vec* v, const float* before, float* out) {
  store(out, add(load(before), sums4(v)));
}

}  // namespace
}  // namespace accel_cpu
