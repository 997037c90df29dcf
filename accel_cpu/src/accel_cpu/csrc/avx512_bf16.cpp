#if defined(__x86_64__)
#if !defined(__AVX512BF16__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || \
    !defined(__AVX512DQ__)
#error "compile this file with the flags listed in kernels.h"
#endif

#include "vec_avx512.h"  // first: the others are written over its vectors

#include "bf16_pairs.h"
#include "linear_part.h"
#include "linear_quantized.h"

namespace accel_cpu {

void linear_part_bf16_pairs(const LinearArgs& args, const Block& block,
                            const LinearScratch& scratch) {
  linear_part<Bf16Pairs>(args, block, scratch);
}

void quantized_part_bf16_pairs(const LinearArgs& args, const Block& block,
                               const LinearScratch& scratch) {
  quantized_part_of<Bf16Pairs, bf16>(args, block, scratch);
}

}  // namespace accel_cpu

#endif
