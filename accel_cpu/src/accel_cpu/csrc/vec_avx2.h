// fp32 vectors for AVX2 with FMA and F16C.
#pragma once

#include <immintrin.h>

#include "element.h"
#include "reduce_avx.h"

namespace accel_cpu {
namespace {

using Vec = __m256;
constexpr int kLanes = 8;
// 12 accumulators, a vector of each row of x and one of w fill the 16 registers.
constexpr int kAccumulators = 12;
constexpr int kTileRows = 6;  // of the tallest tile
constexpr int kDotRows = 3;  // against four of w, lanes along k
// The hardware's own is better: at M=4 14 GB/s, with this 11 (fp32 linear, K=1024, N=4096, one
// Zen 3 core).
constexpr bool kAsksAhead = false;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec broadcast(float a) { return _mm256_set1_ps(a); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec madd(Vec a, Vec b, Vec acc) { return _mm256_fmadd_ps(a, b, acc); }
// b where either is NaN.
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
// a < b ? yes : no
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
inline Vec lane_index() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }

// To nearest, ties to even; |a| < 2^22.
inline Vec round_to_integer(Vec a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline Vec exp2_of(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
// a 2^n, rounded once, for an integer n in [-252, 254] and a neither tiny nor huge.
inline Vec scale_by_exp2(Vec a, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(whole, 1);
  return mul(mul(a, exp2_of(half)), exp2_of(_mm256_sub_epi32(whole, half)));
}

// The whole numbers of kBits bits at p, of which each lane gets one. Of 4 bits two lie in a byte,
// the first in its low half, each plus 8.
template <int kBits>
inline Vec load_numbers(const uint8_t* p) {
  if constexpr (kBits == 8) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  } else {
    int32_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    const __m256i place = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
    const __m256i bits = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(bytes), place),
                                          _mm256_set1_epi32(15));
    return sub(_mm256_cvtepi32_ps(bits), broadcast(8));
  }
}

inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline __m128i load_bits(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline void store_bits(void* p, __m128i a) { _mm_storeu_si128(static_cast<__m128i*>(p), a); }

// AVX2 has no masked moves of 16-bit elements: a tail goes through the stack.
inline __m128i load_bits(const void* p, int n) {
  uint16_t elements[kLanes] = {};
  __builtin_memcpy(elements, p, n * sizeof(uint16_t));
  return load_bits(elements);
}
inline void store_bits(void* p, __m128i a, int n) {
  uint16_t elements[kLanes];
  store_bits(elements, a);
  __builtin_memcpy(p, elements, n * sizeof(uint16_t));
}

inline Vec widen_bf16(__m128i a) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16));
}

inline __m128i narrow_bf16(Vec a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i high =
      _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), _mm256_set1_epi32(0x7fc0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const bf16* p) { return widen_bf16(load_bits(p)); }
inline Vec load(const f16* p) { return _mm256_cvtph_ps(load_bits(p)); }

// The first n < kLanes elements, the other lanes zero. Nothing behind them is touched.
inline Vec load(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
inline Vec load(const bf16* p, int n) { return widen_bf16(load_bits(p, n)); }
inline Vec load(const f16* p, int n) { return _mm256_cvtph_ps(load_bits(p, n)); }

inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
inline void store(bf16* p, Vec a) { store_bits(p, narrow_bf16(a)); }
inline void store(f16* p, Vec a) { store_bits(p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)); }

inline void store(float* p, Vec a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a); }
inline void store(bf16* p, Vec a, int n) { store_bits(p, narrow_bf16(a), n); }
inline void store(f16* p, Vec a, int n) {
  store_bits(p, _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT), n);
}

// v[i][j] becomes v[j][i].
inline void transpose(Vec (&v)[kLanes]) {
  Vec pairs[kLanes], quads[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4) {
    for (int j = 0; j < 2; ++j) {
      quads[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
      quads[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
    v[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
  }
}

// kLanes elements of each of kLanes rows, `stride` apart, transposed as they are read: halves of
// rows i and i + 4 lie beside each other from the load on, and 16 bits are widened last. Of bf16 16
// shuffles in place of the 40 that widening first takes, of fp32 16 in place of 24.
inline __m128i load_bits_at(const void* p, int64_t bytes) {
  return load_bits(static_cast<const char*>(p) + bytes);
}
inline __m256i beside(const void* p, int64_t bytes) {  // 16 bytes at p, 16 so much further on
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load_bits(p)), load_bits_at(p, bytes), 1);
}

[[gnu::always_inline]] inline void load_square(const float* p, int64_t stride, Vec (&out)[kLanes]) {
  for (int half = 0; half < 2; ++half) {
    Vec rows[4];
    for (int i = 0; i < 4; ++i) {
      rows[i] = _mm256_castsi256_ps(beside(p + i * stride + half * 4, 16 * stride));
    }
    const Vec a = _mm256_unpacklo_ps(rows[0], rows[1]), b = _mm256_unpackhi_ps(rows[0], rows[1]);
    const Vec c = _mm256_unpacklo_ps(rows[2], rows[3]), d = _mm256_unpackhi_ps(rows[2], rows[3]);
    out[4 * half] = _mm256_shuffle_ps(a, c, 0x44);
    out[4 * half + 1] = _mm256_shuffle_ps(a, c, 0xee);
    out[4 * half + 2] = _mm256_shuffle_ps(b, d, 0x44);
    out[4 * half + 3] = _mm256_shuffle_ps(b, d, 0xee);
  }
}

// Columns 2 i and 2 i + 1 in out[i]: each four rows, four rows of the next, then likewise the rows
// behind them.
[[gnu::always_inline]] inline void load_column_pairs(const void* p, int64_t bytes,
                                                     __m256i (&out)[4]) {
  __m256i rows[4];
  for (int i = 0; i < 4; ++i) {
    rows[i] = beside(static_cast<const char*>(p) + i * bytes, 4 * bytes);
  }
  const __m256i a = _mm256_unpacklo_epi16(rows[0], rows[1]);
  const __m256i b = _mm256_unpacklo_epi16(rows[2], rows[3]);
  const __m256i c = _mm256_unpackhi_epi16(rows[0], rows[1]);
  const __m256i d = _mm256_unpackhi_epi16(rows[2], rows[3]);
  out[0] = _mm256_unpacklo_epi32(a, b);
  out[1] = _mm256_unpackhi_epi32(a, b);
  out[2] = _mm256_unpacklo_epi32(c, d);
  out[3] = _mm256_unpackhi_epi32(c, d);
}

[[gnu::always_inline]] inline void load_square(const bf16* p, int64_t stride, Vec (&out)[kLanes]) {
  __m256i pairs[4];
  load_column_pairs(p, stride * sizeof(bf16), pairs);
  const __m256i low = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low, pairs[i]));
    out[2 * i + 1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low, pairs[i]));
  }
}

[[gnu::always_inline]] inline void load_square(const f16* p, int64_t stride, Vec (&out)[kLanes]) {
  __m256i pairs[4];
  load_column_pairs(p, stride * sizeof(f16), pairs);
  for (int i = 0; i < 4; ++i) {
    const __m256i columns = _mm256_permute4x64_epi64(pairs[i], 0xd8);
    out[2 * i] = _mm256_cvtph_ps(_mm256_castsi256_si128(columns));
    out[2 * i + 1] = _mm256_cvtph_ps(_mm256_extracti128_si256(columns, 1));
  }
}

// out[j] = the sum of v[j], halving: lanes i and i + 4, then i + 2, i + 1.
inline void reduce4(const Vec* v, float* out) {
  _mm_storeu_ps(out, reduce4(v[0], v[1], v[2], v[3]));
}
// out[j] = before[j] + the sum of v[j]
inline void reduce4(const Vec* v, const float* before, float* out) {
  _mm_storeu_ps(out, _mm_add_ps(_mm_loadu_ps(before), reduce4(v[0], v[1], v[2], v[3])));
}

}  // namespace
}  // namespace accel_cpu
