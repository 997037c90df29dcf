// Products of bf16 in pairs of k, written over the vectors of vec_avx512.h.
#pragma once

#include "weight_panel.h"

namespace accel_cpu {
namespace {

// A step is two k, a vector of it 16 pairs. VDPBF16PS adds two products to each lane. It takes
// subnormal operands and sums for zero.
struct Bf16Pairs {
  using Arithmetic = Bf16Pairs;
  using Rows = Bf16Pairs;
  using Element = bf16;
  template <class>
  using Of = Bf16Pairs;
  using Staged = uint32_t;  // two elements of x, the first in the low half
  using Operand = __m512bh;
  static constexpr int kDepth = 2, kSteps = 1;

  static void stage(const bf16* x, int64_t k, Staged* out) {
    if (k % 2) out[k / 2] = 0;  // the second half of the last pair; others' places lie behind
    __builtin_memcpy(out, x, k * sizeof(bf16));
  }
  static Operand spread(Staged a) { return pairs(_mm512_set1_epi32(static_cast<int>(a))); }
  template <class... N>
  static Operand load_columns(Depth<2>, const bf16* w, int64_t stride, N... n) {
    return interleave(load(w, n...), load(w + stride, n...));
  }
  template <class... N>
  static Operand load_columns(Depth<1>, const bf16* w, int64_t, N... n) {
    return interleave(load(w, n...), _mm256_setzero_si256());
  }
  // As load_numbers of vec_avx512.h; of bf16 each is exact.
  template <int kBits>
  static Operand load_numbers(const uint8_t* p) {
    if constexpr (kBits == 8) {
      // Exact, so the rounding of VCVTNE2PS2BF16 and what it does to subnormals do not matter.
      return _mm512_cvtne2ps_pbh(accel_cpu::load_numbers<8>(p + kLanes),
                                 accel_cpu::load_numbers<8>(p));
    } else {
      // Each lane gets a byte, its high half where the second index is. An index is 5 bits, of
      // which the fifth is the other number's.
      const __m512i bytes =
          _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
      const __m512i indices = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
      const __m256i of_bits = _mm256_setr_epi16(
          static_cast<int16_t>(0xc100), static_cast<int16_t>(0xc0e0),
          static_cast<int16_t>(0xc0c0), static_cast<int16_t>(0xc0a0),
          static_cast<int16_t>(0xc080), static_cast<int16_t>(0xc040),
          static_cast<int16_t>(0xc000), static_cast<int16_t>(0xbf80), 0, 0x3f80, 0x4000, 0x4040,
          0x4080, 0x40a0, 0x40c0, 0x40e0);
      return pairs(_mm512_permutexvar_epi16(indices, _mm512_broadcast_i64x4(of_bits)));
    }
  }
  static Operand load_row(const bf16* w) { return pairs(_mm512_loadu_si512(w)); }
  static Operand load_row(const bf16* w, int n) {
    return pairs(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << n) - 1), w));
  }
  // Pairs stay pairs: to the transposition they are lanes.
  static void transpose(Operand (&rows)[kLanes]) {
    Vec lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = reinterpret_cast<Vec>(rows[i]);
    accel_cpu::transpose(lanes);
    for (int i = 0; i < kLanes; ++i) rows[i] = reinterpret_cast<Operand>(lanes[i]);
  }
  static Vec madd(Operand a, Operand b, Vec acc) { return _mm512_dpbf16_ps(acc, a, b); }

 private:
  static Operand pairs(__m512i a) { return reinterpret_cast<Operand>(a); }
  static __m256i load(const bf16* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static __m256i load(const bf16* p, int n) { return _mm256_maskz_loadu_epi16(first_lanes(n), p); }
  static Operand interleave(__m256i even, __m256i odd) {
    return pairs(_mm512_or_si512(_mm512_cvtepu16_epi32(even),
                                 _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16)));
  }
};

}  // namespace
}  // namespace accel_cpu
