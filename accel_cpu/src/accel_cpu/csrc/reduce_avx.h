// The end of a sum over lanes, shared by AVX2 and AVX-512.
#pragma once

#include <immintrin.h>

namespace accel_cpu {
namespace {

// The sums of a, b, c and d, halving: lanes i and i + 4, then i + 2, i + 1. Together they take
// three operations each, alone six.
inline __m128 reduce4(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 ab = _mm256_add_ps(_mm256_blend_ps(a, b, 0xf0), _mm256_permute2f128_ps(a, b, 0x21));
  const __m256 cd = _mm256_add_ps(_mm256_blend_ps(c, d, 0xf0), _mm256_permute2f128_ps(c, d, 0x21));
  const __m256 s = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  const __m256 sums = _mm256_add_ps(s, _mm256_permute_ps(s, 0xb1));  // a a c c | b b d d
  return _mm_blend_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1), 0xa);
}

}  // namespace
}  // namespace accel_cpu
