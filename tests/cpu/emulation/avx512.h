// AVX-512 by SIMDe, on processors that have no more than AVX2: forced before every file of the
// kernels (make test-emulated), so that they run as they stand. What SIMDe 0.7.4 lacks or has wrong
// is below, by lanes in memory, out of line, as it takes long enough to compile. Its speed says
// nothing.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulated {

// The bits of one thing as another of the same size.
template <class To, class From>
To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class T, int N>
struct Lanes {
  T at[N] = {};
};

// The lanes of memory whose bit of the mask is set, zeros elsewhere; of the others nothing is read.
template <class Vector, class T>
[[gnu::noinline]] Vector load(uint64_t mask, const void* from) {
  Lanes<T, sizeof(Vector) / sizeof(T)> lanes;
  for (size_t i = 0; i < sizeof(Vector) / sizeof(T); ++i) {
    if (mask >> i & 1) std::memcpy(lanes.at + i, static_cast<const T*>(from) + i, sizeof(T));
  }
  return as<Vector>(lanes);
}

template <class T, class Vector>
[[gnu::noinline]] void store(void* to, uint64_t mask, Vector vector) {
  const auto lanes = as<Lanes<T, sizeof(Vector) / sizeof(T)>>(vector);
  for (size_t i = 0; i < sizeof(Vector) / sizeof(T); ++i) {
    if (mask >> i & 1) std::memcpy(static_cast<T*>(to) + i, lanes.at + i, sizeof(T));
  }
}

template <class To, class From, class VectorTo, class VectorFrom>
[[gnu::noinline]] VectorTo convert(VectorFrom vector) {
  const auto from = as<Lanes<From, sizeof(VectorFrom) / sizeof(From)>>(vector);
  Lanes<To, sizeof(VectorTo) / sizeof(To)> to;
  for (size_t i = 0; i < sizeof(VectorTo) / sizeof(To); ++i) to.at[i] = static_cast<To>(from.at[i]);
  return as<VectorTo>(to);
}

[[gnu::noinline]] inline __m512 from_half(__m256i a) {
  const auto half = as<Lanes<__m128i, 2>>(a);
  return as<__m512>(Lanes<__m256, 2>{{_mm256_cvtph_ps(half.at[0]), _mm256_cvtph_ps(half.at[1])}});
}

[[gnu::noinline]] inline __m256i to_half(__m512 a) {
  const auto wide = as<Lanes<__m256, 2>>(a);
  return as<__m256i>(
      Lanes<__m128i, 2>{{_mm256_cvtps_ph(wide.at[0], 0), _mm256_cvtps_ph(wide.at[1], 0)}});
}

// By a power of two that may itself be out of range, as it is in e^88.7.
[[gnu::noinline]] inline __m512 scale(__m512 a, __m512 n) {
  auto lanes = as<Lanes<float, 16>>(a);
  const auto by = as<Lanes<float, 16>>(n);
  for (int i = 0; i < 16; ++i) lanes.at[i] = std::ldexp(lanes.at[i], static_cast<int>(by.at[i]));
  return as<__m512>(lanes);
}

[[gnu::noinline]] inline __m512 shuffle_quarters(__m512 a, __m512 b, int which) {
  const auto x = as<Lanes<__m128, 4>>(a), y = as<Lanes<__m128, 4>>(b);
  return as<__m512>(Lanes<__m128, 4>{{x.at[which & 3], x.at[which >> 2 & 3], y.at[which >> 4 & 3],
                                      y.at[which >> 6 & 3]}});
}

}  // namespace emulated

#define _mm512_maskz_loadu_ps(mask, p) emulated::load<__m512, float>(mask, p)
#define _mm512_maskz_loadu_epi16(mask, p) emulated::load<__m512i, uint16_t>(mask, p)
#define _mm256_maskz_loadu_epi16(mask, p) emulated::load<__m256i, uint16_t>(mask, p)
#define _mm512_mask_storeu_ps(p, mask, a) emulated::store<float>(p, mask, a)
#define _mm256_mask_storeu_epi16(p, mask, a) emulated::store<uint16_t>(p, mask, a)
#define _mm512_cvtepi32_epi16(a) emulated::convert<uint16_t, uint32_t, __m256i>(a)
#define _mm512_cvtepi32_ps(a) emulated::convert<float, int32_t, __m512>(a)
#define _mm512_cvtepu16_epi32(a) emulated::convert<uint32_t, uint16_t, __m512i>(a)
#define _mm512_cvtph_ps(a) emulated::from_half(a)
#define _mm512_cvtps_ph(a, rounding) emulated::to_half(a)
#define _mm512_scalef_ps(a, n) emulated::scale(a, n)
#define _mm512_extractf32x8_ps(a, i) emulated::as<emulated::Lanes<__m256, 2>>(a).at[i]
#define _mm512_shuffle_f32x4(a, b, which) emulated::shuffle_quarters(a, b, which)

// What the kernels' files ask of the compiler, and the library of the processor.
#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512VL__ 1
#define __AVX512DQ__ 1
#define __AVX512BF16__ 1
#define __builtin_cpu_supports(what) 1
