// NEON by SIMDe, on x86-64: found in place of the compiler's own <arm_neon.h> (make test-emulated),
// so that the kernels' file for AArch64 runs as it stands. Its speed says nothing.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/arm/neon.h>

// Without, SIMDe 0.7.4 rounds a fused multiply-add twice.
#if !defined(SIMDE_X86_FMA_NATIVE) || !defined(__F16C__)
#error "NEON is emulated with -mfma and -mf16c"
#endif

namespace emulated {

// Half precision as its bits, and as the processor converts it.
inline float32x4_t from_half(uint16x4_t a) {
  __m128i bits = _mm_setzero_si128();
  __builtin_memcpy(&bits, &a, sizeof a);
  const __m128 wide = _mm_cvtph_ps(bits);
  float32x4_t out;
  __builtin_memcpy(&out, &wide, sizeof out);
  return out;
}

inline uint16x4_t to_half(float32x4_t a) {
  __m128 wide;
  __builtin_memcpy(&wide, &a, sizeof wide);
  const __m128i bits = _mm_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT);
  uint16x4_t out;
  __builtin_memcpy(&out, &bits, sizeof out);
  return out;
}

}  // namespace emulated

// What SIMDe 0.7.4 lacks, or converts in software.
#define vdivq_f32(a, b) ((a) / (b))
#undef vreinterpret_f16_u16
#undef vreinterpret_u16_f16
#undef vcvt_f32_f16
#undef vcvt_f16_f32
#define vreinterpret_f16_u16(a) (a)
#define vreinterpret_u16_f16(a) (a)
#define vcvt_f32_f16(a) emulated::from_half(a)
#define vcvt_f16_f32(a) emulated::to_half(a)
