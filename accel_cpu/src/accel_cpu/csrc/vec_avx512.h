// fp32 vectors for AVX-512 (F, BW, VL, DQ).
#pragma once

// GCC 12 warns about the deliberately undefined registers inside its own intrinsics (GCC bug
// 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "element.h"

namespace accel_cpu {
namespace {

using Vec = __m512;
constexpr int kLanes = 16;
// 24 accumulators, a vector of each row of x and one of w fit in the 32 registers.
constexpr int kAccumulators = 24;
constexpr int kTileRows = 12;  // of the tallest tile
constexpr int kDotRows = 6;  // against four of w, lanes along k
// What it gains: ahead.h.
constexpr bool kAsksAhead = true;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec broadcast(float a) { return _mm512_set1_ps(a); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec madd(Vec a, Vec b, Vec acc) { return _mm512_fmadd_ps(a, b, acc); }
// b where either is NaN.
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
// a < b ? yes : no
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
inline Vec lane_index() {
  return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

// To nearest, ties to even; |a| < 2^22.
inline Vec round_to_integer(Vec a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// a 2^n, rounded once, for an integer n.
inline Vec scale_by_exp2(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }

// The whole numbers of kBits bits at p, of which each lane gets one. Of 4 bits two lie in a byte,
// the first in its low half, each plus 8.
template <int kBits>
inline Vec load_numbers(const uint8_t* p) {
  if constexpr (kBits == 8) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  } else {
    const __m512i word = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512i place =
        _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const Vec of_bits = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i bytes =
        _mm512_castsi128_si512(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    // What lies above four bits the table does not look at.
    return _mm512_permutexvar_ps(
        _mm512_srlv_epi32(_mm512_permutexvar_epi32(word, bytes), place), of_bits);
  }
}

inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

inline Vec widen_bf16(__m256i a) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16));
}

// Round to nearest even in integers: VCVTNEPS2BF16 would flush subnormals to zero.
inline __m256i narrow_bf16(Vec a) {
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(
      _mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), nan, _mm512_set1_epi32(0x7fc0)));
}

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const bf16* p) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load(const f16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// The first n < kLanes elements, the other lanes zero. Nothing behind them is touched.
inline Vec load(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline Vec load(const bf16* p, int n) {
  return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
inline Vec load(const f16* p, int n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}

inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
inline void store(bf16* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow_bf16(a));
}
inline void store(f16* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

inline void store(float* p, Vec a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a); }
inline void store(bf16* p, Vec a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), narrow_bf16(a));
}
inline void store(f16* p, Vec a, int n) {
  _mm256_mask_storeu_epi16(p, first_lanes(n), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

// v[i][j] becomes v[j][i].
inline void transpose(Vec (&v)[kLanes]) {
  Vec pairs[kLanes], quads[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4) {  // now 128 bits hold four rows of one column
    for (int j = 0; j < 2; ++j) {
      quads[i + 2 * j] = _mm512_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
      quads[i + 2 * j + 1] = _mm512_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    const Vec low = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0x88);
    const Vec low_odd = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0xdd);
    const Vec high = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0x88);
    const Vec high_odd = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0xdd);
    v[i] = _mm512_shuffle_f32x4(low, high, 0x88);
    v[i + 4] = _mm512_shuffle_f32x4(low_odd, high_odd, 0x88);
    v[i + 8] = _mm512_shuffle_f32x4(low, high, 0xdd);
    v[i + 12] = _mm512_shuffle_f32x4(low_odd, high_odd, 0xdd);
  }
}

// The sums of v[0] to v[3]: of the quarters lanes 0 and 2, 1 and 3, then the two; then quarters 0
// and 1, 2 and 3, then the two. Four together take 15 operations.
inline __m128 sums4(const Vec* v) {
  const auto pairs = [](Vec a, Vec b) {
    return _mm512_castps_pd(add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
  };
  const __m512d ab = pairs(v[0], v[1]), cd = pairs(v[2], v[3]);
  const Vec sums = add(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
  return _mm_add_ps(
      _mm_add_ps(_mm512_castps512_ps128(sums), _mm512_extractf32x4_ps(sums, 1)),
      _mm_add_ps(_mm512_extractf32x4_ps(sums, 2), _mm512_extractf32x4_ps(sums, 3)));
}
inline void reduce4(const Vec* v, float* out) { _mm_storeu_ps(out, sums4(v)); }
// out[j] = before[j] + the sum of v[j]
inline void reduce4(const Vec* v, const float* before, float* out) {
  _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(before), sums4(v)));
}

}  // namespace
}  // namespace accel_cpu
