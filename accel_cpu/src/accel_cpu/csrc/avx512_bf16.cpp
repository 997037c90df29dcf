#if defined(__x86_64__)
#if !defined(__AVX512BF16__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || \
    !defined(__AVX512DQ__)
#error "compile this file with the flags listed in kernels.h"
#endif

#include "vec_avx512.h"  // first: the others are written over its vectors

#include "linear_block.h"
#include "linear_columns.h"
#include "linear_packed.h"

namespace accel_cpu {
namespace {

// VDPBF16PS adds two products to each lane. It takes subnormal operands and sums for zero.
struct Bf16Pairs {
  using Element = bf16;
  using XElement = bf16;
  using Operand = __m512bh;
  static constexpr int kStep = 32;
  static Operand load(const bf16* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
  static Operand load(const bf16* p, int n) {
    return reinterpret_cast<__m512bh>(
        _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << n) - 1), p));
  }
  static Vec madd(Operand a, Operand b, Vec acc) { return _mm512_dpbf16_ps(acc, a, b); }
};

// Two rows of w, their columns side by side: 16 pairs to a vector.
struct Bf16PairColumns {
  using Element = bf16;
  using Staged = uint32_t;  // two elements of x, the first in the low half
  using Operand = __m512bh;
  static constexpr int kDepth = 2;
  static void stage(const bf16* x, int64_t k, Staged* out) {
    out[k / 2] = 0;  // the second half of an odd k's last pair; past the pairs of an even one
    __builtin_memcpy(out, x, k * sizeof(bf16));
  }
  static Operand spread(Staged a) {
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a)));
  }
  template <class... N>
  static Operand load_rows(Depth<2>, const bf16* w, int64_t stride, N... n) {
    return interleave(load(w, n...), load(w + stride, n...));
  }
  template <class... N>
  static Operand load_rows(Depth<1>, const bf16* w, int64_t, N... n) {
    return interleave(load(w, n...), _mm256_setzero_si256());
  }
  static Vec madd(Operand a, Operand b, Vec acc) { return _mm512_dpbf16_ps(acc, a, b); }

 private:
  static __m256i load(const bf16* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static __m256i load(const bf16* p, int n) { return _mm256_maskz_loadu_epi16(first_lanes(n), p); }
  static Operand interleave(__m256i even, __m256i odd) {
    return reinterpret_cast<__m512bh>(_mm512_or_si512(
        _mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16)));
  }
};

}  // namespace

void linear_columns_bf16_pairs(const LinearArgs& args, const Block& block) {
  linear_columns<Bf16PairColumns>(args, block);
}

void linear_packed_bf16_pairs(const LinearArgs& args, const Block& block,
                              const PackedScratch& scratch) {
  linear_packed<Bf16PairColumns>(args, block, scratch);
}

void linear_block_bf16_pairs(const LinearArgs& args, const Block& block) {
  linear_block<Bf16Pairs>(args, block);
}

}  // namespace accel_cpu

#endif
