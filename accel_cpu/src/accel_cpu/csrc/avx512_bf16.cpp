#if defined(__x86_64__)
#if !defined(__AVX512BF16__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || \
    !defined(__AVX512DQ__)
#error "compile this file with the flags listed in kernels.h"
#endif

#include "vec_avx512.h"  // first: the others are written over its vectors

#include "linear_block.h"

namespace accel_cpu {
namespace {

// VDPBF16PS adds two products to each lane. It takes subnormal operands and sums for zero.
struct Bf16Pairs {
  using Element = bf16;
  using Operand = __m512bh;
  static constexpr int kStep = 32;
  static Operand load(const bf16* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
  static Operand load(const bf16* p, int n) {
    return reinterpret_cast<__m512bh>(
        _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << n) - 1), p));
  }
  static Vec madd(Operand a, Operand b, Vec acc) { return _mm512_dpbf16_ps(acc, a, b); }
};

}  // namespace

void linear_block_bf16_pairs(const LinearArgs& args, const Block& block) {
  linear_block<Bf16Pairs>(args, block);
}

}  // namespace accel_cpu

#endif
